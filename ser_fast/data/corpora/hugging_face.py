"""A corpus that Hugging Face ``datasets`` saved on disk, as Arrow or as Parquet."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from ser_fast._require import require
from ser_fast.data.corpora import labels
from ser_fast.data.corpora.rows import OPTIONAL, SCALE, SPEAKER, Row, to_corpus
from ser_fast.data.corpora.trees import repeated, require_folder
from ser_fast.data.extras import import_extra
from ser_fast.data.sources import Source
from ser_fast.data.utterance import UNKNOWN, Corpus

if TYPE_CHECKING:
    import datasets
    import pyarrow

_PURPOSE = "a corpus of Hugging Face datasets"
_LABELS = ("label", "emotion")
_SPEAKERS = (SPEAKER, "speaker_id")
_NAMES = ("file", "name", "id")


@dataclass(frozen=True)
class ArrowRow(Source):
    """The audio in one row of an Arrow file, which is memory-mapped, so only what is read is loaded.

    Args:
        container: the file.
        name: name for messages.
        column: name of the column of audio.
        row: index of the row.
    """

    container: Path
    name: str
    column: str
    row: int

    @property
    def place(self) -> str:
        """Return the index of the row."""
        return f"{self.column}[{self.row}]"

    def open(self) -> BinaryIO:
        """Open the bytes in the memory-mapped column."""
        pyarrow = import_extra("pyarrow", _PURPOSE, "scale")
        content = _column(self.container, self.column)[self.row]["bytes"]
        return pyarrow.BufferReader(content.as_buffer())


def hugging_face(root: str | PathLike[str], targets: Sequence[str] = ()) -> Corpus:
    """Return the utterances of a dataset that ``save_to_disk`` wrote, or of a folder of Parquet files.

    No audio is decoded. The library copies Parquet to Arrow once, into its own cache (``HF_DATASETS_CACHE``), and
    names the splits by the files' names, such as ``train-00000-of-00002.parquet``.

    A ``DatasetDict`` of several splits is the corpus's own division; their names must be ``train``, ``validation``
    (or ``valid``, ``dev``, ``val``) and ``test``. One column has the feature ``Audio``, with bytes or the path of a
    file. The label is a ``ClassLabel`` or a text, ``label`` or ``emotion``; for a regression the column is ``value``.
    The speaker is ``speaker`` or ``speaker_id``, "unknown" where there is none. An utterance is named by ``file``,
    ``name`` or ``id``, else by the path beside its audio, and by its row if these names are not all different. The
    columns ``start``, ``end``, ``part``, ``group`` and ``sentiment_scale`` are those of a manifest.

    Args:
        root: the folder.
        targets: columns of numbers to predict instead of the label or value, in this order.

    Raises:
        FileNotFoundError: it does not exist.
        ImportError: datasets is not installed.
        ValueError: it is no saved dataset, or a column is missing or malformed; the message names the column or row.
    """
    wanted = "what datasets' save_to_disk wrote, or a folder of Parquet files"
    root = require_folder(root, wanted)
    library = import_extra("datasets", _PURPOSE, "scale")
    try:
        loaded = _load(library, root)
    except (OSError, ValueError, KeyError, library.exceptions.DatasetGenerationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{str(root)!r} is not readable as a dataset ({reason}); it must be {wanted}") from error
    single = isinstance(loaded, library.Dataset)
    splits = {"": loaded} if single else dict(loaded)
    unknown = [name for name in splits if len(splits) > 1 and not labels.is_part(name)]
    require(not unknown, f"{str(root)!r} has the splits {', '.join(splits)}", f"some of {labels.PART_NAMES}")
    rows = []
    for split, dataset in splits.items():
        part = labels.part_of(split) if len(splits) > 1 else None
        rows += _rows(root / split, dataset, f"{root.resolve().name}{split and '/'}{split}", part, targets)
    require(bool(rows), f"{str(root)!r} has 0 rows", "a dataset of at least one")
    if repeated([row.name for row in rows]):
        rows = [Row(row.place, row.cells, row.place, row.path, row.source) for row in rows]
    return to_corpus(root.resolve().name, str(root), rows, targets)


def _load(library: ModuleType, root: Path) -> datasets.Dataset | datasets.DatasetDict:
    if not any(root.rglob("*.parquet")):
        return library.load_from_disk(str(root))
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bars()
    try:
        return library.load_dataset(str(root))
    finally:
        if shown:
            library.enable_progress_bars()


def _rows(folder: Path, dataset: datasets.Dataset, name: str, part: str | None, targets: Sequence[str]) -> list[Row]:
    features, place = dataset.features, str(folder)
    audio = [column for column, feature in features.items() if type(feature).__name__ == "Audio"]
    found = f"{place} has {len(audio)} columns of the feature Audio among {', '.join(features)}"
    require(len(audio) == 1, found, "one; dataset.cast_column('audio', datasets.Audio()) makes it")
    cells = _cells(place, dataset, part, targets)
    paths, has_bytes = _fields(dataset.data.column(audio[0]))
    files = [Path(file["filename"]) for file in dataset.cache_files]
    stored = [(file, row) for file in files for row in range(len(_column(file, audio[0])))]
    require(len(stored) == len(dataset), f"{place} has {len(dataset)} rows of {len(stored)}", "saved anew, with all")
    rows = []
    for index in range(len(dataset)):
        where = f"{name}[{index}]"
        own = {column: values[index] for column, values in cells.items()}
        own = {SPEAKER: UNKNOWN} | {column: value for column, value in own.items() if value is not None}
        path = paths[index]
        require(has_bytes[index] or path, f"{where}: column {audio[0]!r} is empty", "bytes, or the path of a file")
        called = next((str(own.pop(column)) for column in _NAMES if column in own), path or where)
        if has_bytes[index]:
            file, row = stored[index]
            source = ArrowRow(file, where, audio[0], row)
            rows.append(Row(where, own, called, source=source))
        else:
            rows.append(Row(where, own, called, Path(path)))
    return rows


def _fields(stored: pyarrow.ChunkedArray) -> tuple[list[str | None], list[bool]]:
    """Return the paths beside the audio, and where there are bytes; no bytes are loaded."""
    compute = import_extra("pyarrow.compute", _PURPOSE, "scale")
    paths, content = (compute.struct_field(stored, name) for name in ("path", "bytes"))
    return paths.to_pylist(), content.is_valid().to_pylist()


def _cells(place: str, dataset: datasets.Dataset, part: str | None, targets: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of a manifest, under its names; with targets all columns of numbers, without the label."""
    features = dataset.features

    def one(kind: str, names: tuple[str, ...]) -> str | None:
        found = [name for name in names if name in features]
        allowed = f"a dataset with one {kind}: {' or '.join(names)}"
        require(len(found) < 2, f"{place} has the columns {', '.join(features)}", allowed)
        return found[0] if found else None

    if targets:
        chosen = {name: name for name, feature in features.items() if name in targets or _is_number(feature)}
    else:
        target = one("label or value", (*_LABELS, "value"))
        allowed = f"a dataset with a column {', '.join(_LABELS)} or value"
        require(target is not None, f"{place} has the columns {', '.join(features)}", allowed)
        chosen = {"value" if target == "value" else "label": target}
    chosen[SPEAKER] = one("speaker", _SPEAKERS)
    chosen |= {name: name for name in (*OPTIONAL, SCALE, *_NAMES)}
    columns = {}
    for name, column in chosen.items():
        if column in features:
            columns[name] = _values(place, column, dataset)
    if part is not None:
        require("part" not in columns, f"{place} has a column part beside the splits", "one of the two")
        columns["part"] = [part] * len(dataset)
    return columns


def _is_number(feature: object) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype.startswith(("float", "int", "uint"))


def _values(place: str, column: str, dataset: datasets.Dataset) -> list[Any]:
    values, feature = dataset.data.column(column).to_pylist(), dataset.features[column]
    if type(feature).__name__ != "ClassLabel":
        return values
    count = feature.num_classes
    for row, value in enumerate(values):
        good = isinstance(value, int) and 0 <= value < count
        require(good, f"{place}[{row}]: column {column!r} is {value}", f"in 0..{count - 1}, the index of a class")
    return [feature.names[value] for value in values]


@functools.lru_cache(maxsize=512)  # files of a few corpora
def _column(file: Path, column: str) -> pyarrow.ChunkedArray:
    pyarrow = import_extra("pyarrow", _PURPOSE, "scale")
    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all().column(column)

"""A corpus in WebDataset shards: uncompressed tar archives of audio with its labels."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.rows import SPEAKER, TARGETS, Row, to_corpus
from ser_fast.data.corpora.trees import quoted, repeated
from ser_fast.data.extras import import_extra
from ser_fast.data.files import AUDIO_SUFFIXES
from ser_fast.data.sources import Section
from ser_fast.data.utterance import UNKNOWN, Corpus

_LABELS = ("json", "cls", "txt")  # the first that a sample has is read
_LARGEST_LABEL = 1 << 20  # bytes
# First bytes of gzip, bzip2, xz and zstd.
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


def tar(pattern: str | os.PathLike[str], targets: Sequence[str] = ()) -> Corpus:
    """Return the utterances of WebDataset shards; only headers and labels are read, and audio by its offset.

    A sample is the members of one key, such as ``bob/17.wav`` and ``bob/17.json``. The JSON object is a row of a
    manifest without ``file``: ``label`` or ``value``, and ``speaker``, ``start``, ``end``, ``part``, ``group`` and
    ``sentiment_scale`` if they are known. Without it, the text of ``.cls`` or else of ``.txt`` is the label. The
    speaker is ``"unknown"`` where none is named. Keys are grouped as WebDataset does, so members of a sample follow
    each other.

    Args:
        pattern: the shards, with ``*``, ``?`` and WebDataset's braces: ``shards/train-{0000..0041}.tar``.
        targets: numbers of the JSON objects to predict instead of the label or value, in this order.

    Raises:
        FileNotFoundError: no file has such a name, or one that the braces list is missing.
        ImportError: webdataset is not installed.
        ValueError: a shard is compressed, damaged or no tar archive, or a sample lacks audio or label, or its label
            is malformed; the message names shard and key.
    """
    pattern = os.fspath(pattern)
    shards = _shards(pattern)
    rows = [row for shard in shards for row in _rows(shard, targets)]
    require(bool(rows), f"{pattern!r} has 0 utterances in {len(shards)} shards", "shards with at least one")
    # Keys need not differ between shards.
    if repeated([row.name for row in rows]):
        rows = [Row(row.place, row.cells, row.source.name, source=row.source) for row in rows]
    twice = repeated([row.name for row in rows])
    require(not twice, f"{pattern!r} has {', '.join(twice[:3])} more than once", "shards whose members differ")
    name = re.split(r"[*?\[{]", Path(pattern).name)[0].removesuffix(".tar").rstrip("-_.")
    return to_corpus(name or Path(pattern).resolve().parent.name, pattern, rows, targets)


def _shards(pattern: str) -> list[Path]:
    utils = import_extra("webdataset.utils", "a corpus of tar shards", "scale")
    braces = import_extra("braceexpand", "a corpus of tar shards", "scale")
    found = []
    for name in braces.braceexpand(pattern):
        files = [name] if Path(name).is_file() else sorted(utils.glob_with_braces(name))
        require(bool(files), f"shard {name!r} does not exist", "a file, or a pattern of some", FileNotFoundError)
        found += files
    twice = [name for name, count in Counter(found).items() if count > 1]
    require(not twice, f"{pattern!r} lists {', '.join(twice[:3])} more than once", "a list of different shards")
    return list(map(Path, found))


def _rows(shard: Path, targets: Sequence[str]) -> Iterator[Row]:
    """Yield the samples of a shard."""
    grouping = import_extra("webdataset.tariterators", "a corpus of tar shards", "scale")

    def refuse(error: Exception) -> None:  # a member that is there twice
        raise ValueError(f"{shard}: {error.args[0].partition(' in tar')[0]}; it must be there once") from error

    try:
        for sample in grouping.group_by_keys(_members(shard), handler=refuse):
            yield _row(shard, sample, targets)
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: damaged, or not a tar archive: {error}") from error


def _members(shard: Path) -> Iterator[dict[str, Any]]:
    """Yield each file of a shard as ``group_by_keys`` takes it: name, and a section or the content of a label."""
    with open(shard, "rb") as file:
        head = file.read(5)
        tool = next((tool for magic, tool in _COMPRESSED.items() if head.startswith(magic)), "")
        allowed = f"an uncompressed .tar, for audio is read by its offset; {tool} it"
        require(not tool, f"{shard} is compressed", allowed)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # it would hold all of them
                if not member.isreg():
                    continue
                place = f"{shard.name}:{member.name}"
                require(not member.issparse(), f"{shard}: {member.name} is a sparse file", "an ordinary one")
                data = Section(shard, place, member.offset_data, member.size)
                suffix = member.name.rpartition(".")[2].lower()
                if suffix in _LABELS:
                    found = f"{shard}: {member.name} has {member.size} bytes"
                    require(member.size <= _LARGEST_LABEL, found, f"a label, at most {_LARGEST_LABEL}")
                    with data.open() as content:
                        data = content.read()
                yield {"fname": member.name, "data": data, "__url__": str(shard)}
            # tarfile takes a damaged header for the end of the archive.
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
            good = not rest.strip(b"\0")
            require(good, f"{shard}: damaged, no header of a tar archive at byte {archive.offset}", "a whole archive")


def _row(shard: Path, sample: dict[str, Any], targets: Sequence[str]) -> Row:
    key = sample["__key__"]
    place = f"{shard.name}:{key}"
    audio = [name for name in sample if f".{name.rpartition('.')[2]}" in AUDIO_SUFFIXES]
    others = ", ".join(sorted(name for name in sample if not name.startswith("__")))
    found = f"{shard}: sample {key!r} has {len(audio)} audio files ({others})"
    require(len(audio) == 1, found, f"one of {', '.join(AUDIO_SUFFIXES)}, beside its label")
    kind = next((kind for kind in _LABELS if kind in sample), None)
    require(kind is not None, f"{shard}: sample {key!r} has no label ({others})", "a .json, .cls or .txt next to it")
    cells = {SPEAKER: UNKNOWN} | _cells(f"{place}.{kind}", kind, sample[kind], targets)
    source = sample[audio[0]]
    return Row(f"{place}.{kind}", cells, source.name.partition(":")[2], source=source)


def _cells(place: str, kind: str, content: bytes, targets: Sequence[str]) -> dict[str, Any]:
    """Return the row that a label file holds."""
    try:
        text = content.decode()
        row = json.loads(text) if kind == "json" else {"label": text.strip()}
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: byte 0x{content[error.start]:02x}; it must be UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {str(error).partition(';')[0]}; it must be one JSON object") from error
    require(isinstance(row, dict), f"{place}: value is {quoted(row)}", "a JSON object")
    if kind == "txt":
        require("\n" not in row["label"], f"{place}: label is {quoted(row['label'])}", "a name in one line")
    known = {name: cell for name, cell in row.items() if cell is not None}
    has_target = bool(targets) or any(name in known for name in TARGETS)
    require(has_target, f"{place}: has {quoted(list(row))}", "an object with label or value")
    return known

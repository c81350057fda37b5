"""Files of features of frames ``[T, D]``, by names of audio files: .npz and .parquet."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from ser_fast._require import require
from ser_fast.data.budget import available_memory, size
from ser_fast.data.extras import import_extra
from ser_fast.data.files import printable
from ser_fast.data.sources import Source
from ser_fast.data.utterance import Utterance

_SHOWN = 3  # names in an error
KEYS = "named by its path, by the end of its path, such as speaker/file.wav, or by its name without a folder"


class FrameFile:
    """Features of frames ``[T, D]`` by names of audio files; base class of the kinds of files.

    Args:
        path: the file.

    Attributes:
        shapes: ``(T, D)`` of each key; D is the same for all.

    Raises:
        ValueError: the file cannot be read, or has an array that is not ``[T, D]`` of floating-point numbers.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, int]] = {}
        self._paths: dict[str, str] = {}
        for key, shape, dtype in self._headers():
            self._add(key, shape, dtype)
        require(bool(self.shapes), f"{self._place()} has no arrays", "a file with [T, D] for each audio file")
        # Of names alone: x/a.wav has the stem of y/a.wav, but not its features.
        names = [key for key in self.shapes if len(PurePath(key).parts) == 1]
        stems = Counter(PurePath(key).stem for key in names)
        self._stems = {PurePath(key).stem: key for key in names if stems[PurePath(key).stem] == 1}

    def _headers(self) -> Iterator[tuple[str, tuple[int, ...], object]]:
        """Yield key, shape and dtype of each array."""
        raise NotImplementedError

    def _read(self, key: str) -> np.ndarray:
        raise NotImplementedError

    def _add(self, key: str, shape: tuple[int, ...], dtype: object) -> None:
        place = self._place(key)
        require(str(dtype) in ("float16", "float32", "float64"), f"{place} is {dtype}", "float16, float32 or float64")
        good = len(shape) == 2 and min(shape) > 0
        require(good, f"{place} has the shape {list(shape)}", "[T, D], frames by features, none of them 0")
        first, (_, width) = next(iter(self.shapes.items()), (key, shape))
        require(shape[1] == width, f"{place} has {shape[1]} features in a frame", f"{width}, as {printable(first)!r}")
        path = PurePath(key).as_posix()  # "./a" and "a//b" name the same as "a" and "a/b"
        require(path not in self._paths, f"{place} is there twice", "there once")
        self.shapes[key], self._paths[path] = shape, key

    @property
    def width(self) -> int:
        """Return D."""
        return next(iter(self.shapes.values()))[1]

    def find(self, name: str, audio: str | Path | Source | None = None) -> str | None:
        """Return the key of an audio file, None if there is none.

        Args:
            name: name of the utterance, which may be a key itself.
            audio: the file; None for a part of a file or a wave in memory, which only its name identifies.
        """
        if name in self._paths or audio is None:
            return self._paths.get(name)
        path = PurePath(audio.name if isinstance(audio, Source) else audio)
        ends = [PurePath(*path.parts[start:]) for start in range(len(path.parts))]
        tried = (found.as_posix() for end in ends for found in (end, end.with_suffix("")))
        return next((self._paths[found] for found in tried if found in self._paths), self._stems.get(path.stem))

    def read(self, key: str) -> np.ndarray:
        """Return the features ``[T, D]`` of a key as float32.

        Raises:
            ValueError: they cannot be read, or hold NaN or infinity.
        """
        with np.errstate(over="ignore"):
            frames = np.ascontiguousarray(self._read(key), np.float32)
        if not np.isfinite(frames).all():
            t, d = np.argwhere(~np.isfinite(frames))[0].tolist()
            raise ValueError(f"{self._place(key)} has {frames[t, d]} in frame {t}; it must be finite")
        return frames

    def _place(self, key: str = "") -> str:
        return f"features is {printable(self.path)}, " + (f"where {printable(key)!r}" if key else "which")


class NpzFile(FrameFile):
    """An ``.npz`` as :func:`numpy.savez` writes it; nothing in it is unpickled."""

    def __init__(self, path: Path):
        try:
            self._archive = zipfile.ZipFile(path)
        except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"features is {printable(path)}, which is not readable as .npz ({error})") from error
        super().__init__(path)

    def _headers(self) -> Iterator[tuple[str, tuple[int, ...], object]]:
        for member in self._archive.namelist():
            key = member.removesuffix(".npy")
            with self._opened(key) as file:
                first = npy.read_magic(file) == (1, 0)
                shape, _, dtype = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(file)
            yield key, shape, dtype

    def _read(self, key: str) -> np.ndarray:
        with self._opened(key) as file:
            return npy.read_array(file, allow_pickle=False)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        try:
            with self._archive.open(f"{key}.npy") as file:
                yield file
        except Exception as error:  # damage raises errors of many types, among them those of each compression
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self._place(key)} cannot be read ({reason}); it must be an array of .npy") from error


class ParquetFile(FrameFile):
    """A ``.parquet`` with a row for each audio file, which is kept in memory.

    The column ``file``, or ``path`` or ``name``, has its name; ``features`` has a list of frames, each a list of
    numbers, or all numbers in one list, frame after frame, beside a column ``shape`` of ``[T, D]``.
    """

    def __init__(self, path: Path):
        pyarrow = import_extra("pyarrow", "a .parquet", "scale")
        parquet = import_extra("pyarrow.parquet", "a .parquet", "scale")
        self.path = path
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                column = next((name for name in ("file", "path", "name") if name in names), "")
                found = f"{self._place()} has the columns {', '.join(names)[:200] or 'none'}"
                require(bool(column) and "features" in names, found, "a table with 'file' and 'features'")
                kind = file.schema_arrow.field("features").type
                good = _lists(pyarrow.types, kind) == (1 if "shape" in names else 2)
                allowed = "lists of lists of floating-point numbers, or one list beside a column 'shape'"
                require(good, f"{self._place()} has features of the type {kind}", allowed)
                self._require_memory(file.metadata)
                table = file.read([name for name in (column, "features", "shape") if name in names])
        except (pyarrow.ArrowException, OSError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(f"features is {printable(path)}, which is not readable as Parquet ({first})") from error
        lengths = import_extra("pyarrow.compute", "a .parquet", "scale").list_value_length
        rows = range(table.num_rows)
        self._arrays = [(str(table[column][row].as_py()), _array(table, row, lengths)) for row in rows]
        super().__init__(path)
        self._rows = {key: row for row, (key, _) in enumerate(self._arrays)}

    def _require_memory(self, metadata) -> None:
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        columns = (group.column(number) for group in groups for number in range(group.num_columns))
        needed = sum(column.num_values * 8 for column in columns)
        free = available_memory()
        require(needed <= free, f"{self._place()} takes up to {size(needed)} of memory", f"at most {size(free)}")

    def _headers(self) -> Iterator[tuple[str, tuple[int, ...], object]]:
        return ((key, array.shape, array.dtype) for key, array in self._arrays)

    def _read(self, key: str) -> np.ndarray:
        return self._arrays[self._rows[key]][1]


def _lists(types, kind) -> int:
    """Return how many lists around floating-point numbers a type of pyarrow is; -1 for any other type."""
    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth if types.is_floating(kind) else -1


def _array(table, row: int, lengths: Callable) -> np.ndarray:
    """Return the array of a row; one of a single dimension if it is not rectangular."""
    values = table["features"][row].values
    if values is None:
        return np.empty(0, np.float32)
    if "shape" in table.column_names:
        shape = table["shape"][row].as_py()
    else:
        widths = set(lengths(values).to_pylist())
        shape = [len(values), *widths] if len(widths) == 1 else None
        values = values.flatten()
    array = values.to_numpy(zero_copy_only=False)
    counts = isinstance(shape, list) and all(isinstance(count, int) and count >= 0 for count in shape)
    return array.reshape(shape) if counts and math.prod(shape) == len(array) else array


FILES = {".npz": NpzFile, ".parquet": ParquetFile}


def open_file(path: Path) -> FrameFile:
    """Open a file of features by its suffix.

    Raises:
        ValueError: there is no such file, its suffix is another, or as in :class:`FrameFile`.
    """
    kind = FILES.get(path.suffix.lower())
    good = kind is not None and path.is_file()
    require(good, f"features is {printable(path)}", f"a file {' or '.join(FILES)}, or the folder of an encoder")
    return kind(path)


def found_keys(file: FrameFile, utterances: Sequence[Utterance]) -> list[str]:
    """Return the key of each utterance.

    Raises:
        ValueError: some utterances have no features, or two have the same; the message counts and names the first.
    """
    keys = [file.find(one.name, one.audio if one.start is None and one.end is None else None) for one in utterances]
    missing = [one.name for one, key in zip(utterances, keys) if key is None]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        lacks = f"lacks {len(missing)} of {len(utterances)} utterances: {shown}"
        raise ValueError(f"features is {printable(file.path)}, which {lacks}; it must have each, {KEYS}")
    first: dict[str, str] = {}
    for one, key in zip(utterances, keys):
        found = f"features is {printable(file.path)}, where {printable(key)!r} is for {first.get(key)} and {one.name}"
        require(key not in first, found, f"for one; each is {KEYS}")
        first[key] = one.name
    return keys

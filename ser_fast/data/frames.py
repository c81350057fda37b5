"""Features of the frames of utterances: read from a file, and kept in memory or on disk."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from ser_fast._require import require
from ser_fast.data.audio import read_each, readable
from ser_fast.data.budget import available_memory, free_disk, size
from ser_fast.data.cache import Cache, DiskWaves
from ser_fast.data.files import printable
from ser_fast.data.sources import Source
from ser_fast.data.storage import SPARE, Storage
from ser_fast.data.utterance import Utterance, plural
from ser_fast.data.waves import MemoryWaves, Waves

_SHOWN = 3  # names in an error
KEYS = "named by its path, by the end of its path, such as speaker/file.wav, or by its stem where that is unique"
_UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


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
        for key, shape, dtype in self._headers():
            self._add(key, shape, dtype)
        require(bool(self.shapes), f"{self._place()} has no arrays", "a file with [T, D] for each audio file")
        self._paths = {PurePath(key).as_posix(): key for key in self.shapes}
        stems = Counter(PurePath(key).stem for key in self.shapes)
        self._stems = {PurePath(key).stem: key for key in self.shapes if stems[PurePath(key).stem] == 1}

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
        require(key not in self.shapes, f"{place} is there twice", "there once")
        self.shapes[key] = shape

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
        except _UNREADABLE as error:
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
        except (*_UNREADABLE, KeyError) as error:
            raise ValueError(f"{self._place(key)} cannot be read ({error}); it must be an array of .npy") from error


FILES = {".npz": NpzFile}


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


class FrameWaves(Waves):
    """Features ``[T, D]`` of utterances, which are stored flat.

    Args:
        flat: values ``[T * D]`` of each.
        width: D.
    """

    def __init__(self, flat: Waves, width: int):
        super().__init__([length // width for length in flat.lengths], flat.names, flat.workers)
        self.flat, self.width = flat, width

    def stored(self, i: int) -> np.ndarray:
        """Return the features of an utterance, ``[T, D]``."""
        return self.flat.stored(i).reshape(-1, self.width)


def keep(
    utterances: Sequence[Utterance],
    read: Callable[[Utterance], np.ndarray],
    frames: int,
    width: int,
    kind: str,
    storage: Storage,
    report: Callable[[str], None],
    *,
    costly: bool = False,
) -> FrameWaves:
    """Compute the features of each utterance once, and keep them in memory or in a cache on disk.

    Args:
        utterances: a corpus.
        read: returns the features ``[T, D]`` of an utterance, float32.
        frames: T of all utterances together, or an estimate.
        width: D.
        kind: identifies ``read`` for the cache on disk.
        storage: where they are kept; its cache "none" is "auto".
        report: called with a line that says how much they take and where, and while they are computed.
        costly: prefer the disk under "auto", so that later runs compute nothing.

    Raises:
        AudioError: audio cannot be read.
        ValueError: they do not fit where ``storage`` says, or ``read`` raises it.
    """

    def flat(utterance: Utterance) -> np.ndarray:
        return read(utterance).reshape(-1)

    cache = Cache(storage.folder, utterances, width, report, flat, kind)
    needed, memory, written = frames * width * 4, available_memory(), cache.written()
    disk = free_disk(storage.folder) + written
    if storage.cache == "none":
        storage = replace(storage, cache="auto")
    if costly and storage.cache == "auto" and needed + SPARE <= disk:
        storage = replace(storage, cache="disk")
    chosen = storage.choose(needed, memory, disk)
    found = f"the features take {size(needed)}, and {size(storage.budget(memory))} of memory and {size(disk)} of disk"
    require(chosen != "none", found, "on a larger disk, named by cache_dir")
    where = f"on disk in {printable(storage.folder)}" if chosen == "disk" else "in memory"
    report(f"features of {plural(len(utterances), 'utterance')}: {frames} frames of {width}, {size(needed)} {where}")
    names = [one.name for one in utterances]
    if chosen == "memory":
        _, rows, _ = readable(utterances, list(read_each(utterances, flat, report)), False)
        return FrameWaves(MemoryWaves(rows, names), width)
    rows = cache.rows(False) or cache.make(False, needed)
    _, rows, _ = readable(utterances, rows, False)
    return FrameWaves(DiskWaves(cache.waves, rows, names, storage.readers("disk")), width)


def digest(frames: Waves) -> str:
    """Return a SHA-256 of the features of all utterances, in their order."""
    found = hashlib.sha256()
    for i in range(len(frames)):
        values = frames[i].numpy()
        found.update(str(values.shape).encode())
        found.update(values)
    return found.hexdigest()

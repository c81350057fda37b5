"""A corpus on disk: decoded and resampled waves in one file, made once and read by any number of processes.

The folder of a corpus holds

    waves    the waves, one after the other, little-endian, int16 where that is lossless, else float32
    index    a line of JSON for each utterance: ``[number, samples, bytes of a sample, CRC-32]`` in the order of the
             waves, or ``[number, error message]``; the CRC-32 starts from the number, so it proves both
    lock     held by the process that writes
    making   the index while it is being written; renamed when the cache is complete

The next process resumes after the last whole line of ``making`` that a killed one left. The folder may be removed
while no process uses it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ser_fast.data.audio import read_each, read_utterance
from ser_fast.data.budget import size
from ser_fast.data.files import printable
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import Waves, pack

_VERSION = 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TYPES = {2: np.dtype("<i2"), 4: np.dtype("<f4")}


class Row(NamedTuple):
    """Place of a wave: offset in bytes, number of the utterance, samples, bytes of a sample, CRC-32."""

    offset: int
    number: int
    samples: int
    width: int
    checksum: int


class DiskWaves(Waves):
    """Waves in a finished cache.

    Args:
        path: the file of the waves.
        rows: place of each wave.
        names: name of each wave.
        workers: processes that read them for training.
    """

    # Positioned reads, not a memory map: the page cache holds one copy for all processes either way, and a truncated
    # file is an error here instead of a SIGBUS.

    def __init__(self, path: Path, rows: Sequence[Row], names: Sequence[str], workers: int = 0):
        super().__init__([row.samples for row in rows], names, workers)
        self.path, self.rows = path, np.array(rows, np.int64).reshape(-1, len(Row._fields))

    def stored(self, i: int) -> np.ndarray:
        row = Row(*self.rows[i].tolist())
        again = f"remove {printable(self.path.parent)} and rerun the command: it makes the cache again and resumes"
        try:
            wave = np.fromfile(self.path, _TYPES[row.width], row.samples, offset=row.offset)
        except OSError as error:
            raise AudioError(f"{self.names[i]}: the cache cannot be read ({error.strerror}); {again}") from error
        if len(wave) != row.samples or zlib.crc32(wave, row.number) != row.checksum:
            raise AudioError(f"{self.names[i]}: the cache is damaged; {again}")
        return wave


class Cache:
    """The cache of a corpus at one sample rate.

    Args:
        folder: folder of all caches.
        utterances: the corpus.
        sample_rate: sample rate of the cached waves, in hertz.
        report: called with a line about what is done.
        read: returns what is cached of an utterance, ``[N]``; by default its wave.
        kind: identifies ``read``; "" is the default.
    """

    def __init__(
        self,
        folder: Path,
        utterances: Sequence[Utterance],
        sample_rate: int,
        report: Callable[[str], None] = lambda line: None,
        read: Callable[[Utterance], np.ndarray] | None = None,
        kind: str = "",
    ):
        self.utterances, self.sample_rate, self.report = utterances, sample_rate, report
        self.read = read or (lambda utterance: read_utterance(utterance, sample_rate).numpy())
        self.folder = Path(folder) / _key(utterances, sample_rate, kind)
        self.waves, self.index, self.making = (self.folder / name for name in ("waves", "index", "making"))

    def rows(self, skip_bad: bool) -> list[Row | AudioError] | None:
        """Return the row of each utterance, or its error; None if the cache is not complete.

        Args:
            skip_bad: accept the errors that the cache recorded; otherwise unreadable files are tried again.
        """
        rows = self._read_index(self.index)[0]
        finished = all(row is not None for row in rows)
        return rows if finished and (skip_bad or not _errors(rows)) else None

    def written(self) -> int:
        """Return the bytes of the waves that are written."""
        return self.waves.stat().st_size if self.waves.is_file() else 0

    def make(self, skip_bad: bool, needed: int) -> list[Row | AudioError]:
        """Complete the cache, unless another process has, and return the row of each utterance, or its error.

        Args:
            skip_bad: complete it although some utterances cannot be read.
            needed: bytes of the waves, for the message of a full disk.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                return self.rows(skip_bad) or self._make(skip_bad)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            written = self.written()
            raise OSError(
                error.errno,
                f"cache_dir is {printable(self.folder.parent)}, where the disk is full: about "
                f"{size(max(needed - written, 0))} more are needed. The {size(written)} that are written are kept; "
                "free some space and rerun the command to resume, or rerun it with --cache=none",
            ) from error

    def _make(self, skip_bad: bool) -> list[Row | AudioError]:
        if self.index.is_file():
            if any(row is None for row in self._read_index(self.index)[0]):
                self.report(f"{printable(self.folder)} is damaged; its missing part is made again")
            os.replace(self.index, self.making)
        rows, end, whole = self._read_index(self.making)
        with open(self.making, "ab", buffering=0) as making, open(self.waves, "ab", buffering=0) as waves:
            making.truncate(whole)
            waves.truncate(end)
            left = [number for number, row in enumerate(rows) if not isinstance(row, Row)]
            if len(left) < len(rows):
                self.report(f"resuming after {len(rows) - len(left)} of {len(rows)} utterances")
            results = read_each([self.utterances[number] for number in left], self._read, self.report)
            for number, wave in zip(left, results, strict=True):
                rows[number] = wave
                if not isinstance(wave, AudioError):
                    rows[number] = Row(end, number, len(wave), wave.itemsize, zlib.crc32(wave, number))
                    end += wave.nbytes
                    _write(waves, wave)
                    _write(making, _line(*rows[number][1:]))
            errors = _errors(rows)
            if errors and not skip_bad:
                return rows
            for number in errors:
                _write(making, _line(number, str(rows[number])))
            for file in (waves, making):
                os.fsync(file.fileno())
        os.replace(self.making, self.index)
        return rows

    def _read(self, utterance: Utterance) -> np.ndarray:
        wave = pack(self.read(utterance))
        return wave.astype(_TYPES[wave.itemsize], copy=False)

    def _read_index(self, path: Path) -> tuple[list[Row | AudioError | None], int, int]:
        """Return the rows in an index whose waves are whole, where these end, and where their lines end."""
        rows: list[Row | AudioError | None] = [None] * len(self.utterances)
        written, end, whole = self.written(), 0, 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            try:
                number, row = _parse(line, end)
                after = end if isinstance(row, AudioError) else end + row.samples * row.width
                if after > written or not line.endswith(b"\n"):
                    break
                rows[number] = row
            except (ValueError, TypeError, IndexError):
                break
            end, whole = after, whole + len(line)
        return rows, end, whole

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder, which the system releases however the process ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"waiting for another process, which writes {printable(self.folder)}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _errors(rows: Sequence[Row | AudioError | None]) -> list[int]:
    return [number for number, row in enumerate(rows) if isinstance(row, AudioError)]


def _parse(line: bytes, offset: int) -> tuple[int, Row | AudioError]:
    """Return the number and the row of a line of an index.

    Raises:
        ValueError, TypeError: the line is damaged.
    """
    number, *values = json.loads(line)
    row = AudioError(*values) if len(values) == 1 else Row(offset, number, *values)
    sound = number >= 0
    if isinstance(row, Row):
        sound = all(isinstance(value, int) and value >= 0 for value in row) and row.width in _TYPES
    if not sound:
        raise ValueError(line)
    return number, row


def _line(*values: int | str) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _write(file: BinaryIO, content: np.ndarray | bytes) -> None:
    """Write everything to an unbuffered file, which may take a part at a time."""
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) :]


def _key(utterances: Sequence[Utterance], sample_rate: int, kind: str) -> str:
    """Return a SHA-256 of the files' names, sizes and times, as ``make`` compares files: without reading them."""
    versions = [importlib.metadata.version(name) if find_spec(name) else "" for name in ("soundfile", "soxr")]
    rows = [_state(utterance) for utterance in utterances]
    what = [_VERSION, sample_rate, versions, rows, *([kind] if kind else [])]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _state(utterance: Utterance) -> tuple:
    try:
        return utterance.key()
    except OSError:
        return str(utterance.audio), utterance.start, utterance.end

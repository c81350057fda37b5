"""Choose and open the storage of a corpus: memory, a cache on disk, or its own files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ser_fast._require import require
from ser_fast.data.audio import read_each, read_utterance, readable
from ser_fast.data.budget import available_memory, free_disk, hours, size
from ser_fast.data.cache import Cache, DiskWaves
from ser_fast.data.files import printable
from ser_fast.data.headers import scan
from ser_fast.data.utterance import Utterance, plural
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import FileWaves, MemoryWaves, Waves, pack

CACHES = ("auto", "memory", "disk", "none")
_SHARE = 0.25  # of the available memory, which a corpus may take under "auto"
_MOST_WORKERS = 8  # that are started unasked
SPARE = 1 << 30  # of the disk, which a cache leaves free under "auto"


@dataclass(frozen=True)
class Storage:
    """Options of the storage of a corpus.

    Args:
        cache: "memory"; "disk", a file of decoded waves; "none", which decodes the files in every epoch; or "auto",
            the first of these that fits.
        cache_dir: folder of the caches on disk; "" is :func:`default_cache_dir`.
        workers: processes that read the waves of "disk" and "none" for training; -1 chooses.
        processes: processes of this machine that use the corpus. Several share one copy, on disk.

    Raises:
        ValueError: a value is out of range.
    """

    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    cache_dir: str | Path = ""
    workers: int = -1
    processes: int = 1

    def __post_init__(self):
        require(self.cache in CACHES, f"cache is {self.cache!r}", f"one of {', '.join(CACHES)}")
        require(self.workers >= -1, f"workers is {self.workers}", "at least 0, or -1")
        require(self.processes >= 1, f"processes is {self.processes}", "at least 1")

    @property
    def folder(self) -> Path:
        """Return the folder of the caches on disk."""
        return Path(self.cache_dir) if self.cache_dir else default_cache_dir()

    def readers(self, cache: str) -> int:
        """Return the number of processes that read for this one."""
        if self.workers >= 0 or cache != "none":  # a read of the page cache is faster than its way between processes
            return max(self.workers, 0)
        return min(max(1, (os.cpu_count() or 1) // self.processes - 1), _MOST_WORKERS)

    def budget(self, memory: float) -> float:
        """Return the bytes that a corpus may take of so many that are available."""
        return memory if self.cache == "memory" else _SHARE * memory

    def choose(self, needed: int, memory: float, disk: float) -> str:
        """Return "memory", "disk" or "none" for a corpus that needs so many bytes.

        Args:
            needed: bytes of the corpus.
            memory: available bytes of memory, of which "auto" takes a quarter.
            disk: available bytes of the disk.

        Raises:
            ValueError: the corpus does not fit where ``cache`` says.
        """
        if self.cache == "none":
            return "none"
        together = self.processes > 1
        if self.cache == "memory" and not together:
            found = f"cache is memory, but the corpus needs {size(needed)} and {size(memory)} are available"
            require(needed <= self.budget(memory), found, "disk or none")
            return "memory"
        if self.cache == "auto":
            if needed <= self.budget(memory) and not together:
                return "memory"
            return "disk" if needed + SPARE <= disk else "none"
        reason = (
            f"where {size(disk)} are free and the corpus needs {size(needed)}" if disk else "which cannot be written"
        )
        found = f"cache_dir is {printable(self.folder)}, {reason}"
        require(needed <= disk, found, "a folder on another disk, or cache must be none")
        return "disk"


def default_cache_dir() -> Path:
    """Return ``ser_fast/corpora`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(cache), "ser_fast", "corpora")


def open_waves(
    utterances: Sequence[Utterance],
    sample_rate: int,
    skip_bad: bool,
    storage: Storage,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Utterance], Waves, list[AudioError]]:
    """Return the utterances that can be read, their waves, and the errors of the others.

    Args:
        utterances: a corpus; one whose samples are in memory stays there, whatever ``storage`` says.
        sample_rate: sample rate of the waves, in hertz.
        skip_bad: leave out unreadable utterances instead of raising an error.
        storage: how the waves are kept.
        report: called with a line that says how much the corpus takes and where, and while it is read.

    Raises:
        AudioError: as in :func:`ser_fast.data.audio.read_corpus`. Under "none" an utterance whose header is sound
            raises it when it is used.
        ValueError: the corpus does not fit where ``storage`` says; raised before it is read.
        MemoryError: it does not fit in memory all the same.
    """
    if all(utterance.samples is not None for utterance in utterances):
        return _in_memory(utterances, sample_rate, skip_bad, 0, report)
    possible = storage.cache in ("auto", "disk") or (storage.cache == "memory" and storage.processes > 1)
    cache = Cache(storage.folder, utterances, sample_rate, report) if possible else None
    rows = cache and cache.rows(skip_bad)
    if rows:
        chosen, needed = "disk", cache.written()
        samples = sum(row.samples for row in rows if not isinstance(row, AudioError))
    else:
        measured = scan(utterances, sample_rate, report)
        known = [one for one in measured if not isinstance(one, AudioError)]
        samples, needed = sum(one.samples for one in known), sum(one.bytes for one in known)
        memory, disk = available_memory(), free_disk(storage.folder) + (cache.written() if cache else 0)
        chosen = storage.choose(needed, memory, disk)
    if chosen == "memory":
        where = f"{size(needed)} in memory (budget {size(storage.budget(memory))})"
    elif chosen == "disk":
        shared = f", one copy for {storage.processes} processes" if storage.processes > 1 else ""
        where = f"{size(needed)} on disk in {printable(storage.folder)}{shared}"
    else:
        reason = f"; {size(needed)} fit neither in memory nor on disk" if storage.cache == "auto" else ""
        where = f"read from the files in every epoch{reason}"
    verb = "" if rows or chosen == "none" else "reading "
    report(f"{verb}{counted(utterances)} ({hours(samples / sample_rate)}): {where}")
    if chosen == "memory":
        return _in_memory(utterances, sample_rate, skip_bad, needed, report)
    if chosen == "none":
        kept, sizes, errors = readable(utterances, measured, skip_bad)
        lengths = [one.samples for one in sizes]
        return kept, FileWaves(kept, lengths, sample_rate, storage.readers("none")), errors
    kept, rows, errors = readable(utterances, rows or cache.make(skip_bad, needed), skip_bad)
    return kept, DiskWaves(cache.waves, rows, [one.name for one in kept], storage.readers("disk")), errors


def _in_memory(
    utterances: Sequence[Utterance], sample_rate: int, skip_bad: bool, needed: int, report: Callable[[str], None]
) -> tuple[list[Utterance], Waves, list[AudioError]]:
    def read(utterance: Utterance) -> np.ndarray:
        return pack(read_utterance(utterance, sample_rate).numpy())

    try:
        kept, waves, errors = readable(utterances, list(read_each(utterances, read, report)), skip_bad)
    except MemoryError as error:
        raise MemoryError(
            f"the corpus, about {size(needed)}, does not fit in memory; rerun the command with --cache=disk"
        ) from error
    return kept, MemoryWaves(waves, [one.name for one in kept]), errors


def counted(utterances: Sequence[Utterance]) -> str:
    """Return the number of utterances, which are called files if each is a whole one."""
    whole = all(one.path is not None and one.start is None and one.end is None for one in utterances)
    return plural(len(utterances), "file" if whole else "utterance")

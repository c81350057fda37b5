"""Features of the frames of utterances, computed once and kept in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ser_fast._require import require
from ser_fast.data.audio import read_each, readable
from ser_fast.data.budget import available_memory, free_disk, size
from ser_fast.data.cache import Cache, DiskWaves
from ser_fast.data.files import printable
from ser_fast.data.storage import SPARE, Storage
from ser_fast.data.utterance import Utterance, plural
from ser_fast.data.waves import MemoryWaves, Waves


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

"""Read the waves of batches in worker processes, ahead of their use."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from ser_fast.data.waves import Waves, unpack

_AHEAD = 2  # batches of each worker
# A forked process shares the index of the corpus and starts in milliseconds. It decodes by NumPy, soundfile and soxr
# alone: torch's threads do not survive a fork.
_START = "fork" if sys.platform == "linux" else None


def read_groups(waves: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
    """Yield the waves of each group of indices, in order; the workers of :class:`Waves` read ahead.

    Raises:
        AudioError: a wave cannot be read.
        RuntimeError: a worker ended; the message names what it was reading.
    """
    workers = getattr(waves, "workers", 0)
    if not workers:
        for group in groups:
            yield [waves[i] for i in group]
        return
    reader = _Reader(waves, workers)
    with _own_signals():
        batches = iter(DataLoader(
            reader,
            batch_size=None,
            sampler=groups,
            num_workers=workers,
            collate_fn=_unchanged,
            prefetch_factor=_AHEAD,
            multiprocessing_context=_START,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # for the workers' seeds; by default it would change the numbers of the run
        ))  # fmt: skip
    for _ in groups:
        try:
            found = next(batches)
        except RuntimeError as error:
            raise RuntimeError(reader.ended(str(error))) from error
        if isinstance(found, Exception):
            raise found
        yield [torch.from_numpy(unpack(stored)) for stored in found]


class _Reader:
    """Dataset of a loader whose items are lists of waves.

    ``reading`` holds the process id of each worker and the wave that it is reading, or -1.
    """

    def __init__(self, waves: Waves, workers: int):
        self.waves = waves
        self.reading = multiprocessing.RawArray("q", [0, -1] * workers)

    def __getitem__(self, group: Sequence[int]) -> list[np.ndarray] | Exception:
        # Arrays go through a pipe; tensors would take shared memory, of which containers have little.
        place = 2 * get_worker_info().id
        self.reading[place] = os.getpid()
        found = []
        try:
            for i in group:
                self.reading[place + 1] = i
                found.append(self.waves.stored(i))
        except Exception as error:  # the loader would turn it into an error with a traceback as its message
            return error
        self.reading[place + 1] = -1
        return found

    def ended(self, said: str) -> str:
        """Return a sentence about a worker that ended, from the loader's error, which lists process ids."""
        ended = set(map(int, re.findall(r"\d+", said)))
        pairs = zip(self.reading[::2], self.reading[1::2])
        names = [self.waves.names[i] for process, i in pairs if process in ended and i >= 0]
        where = f" while it read {', '.join(names)}" if names else ""
        return (
            f"a process that reads audio ended{where}, perhaps for lack of memory; rerun the command, with fewer "
            "--workers or a smaller --batch_size, to resume after the last whole epoch"
        )


def end_with_parent() -> None:
    """End this process as soon as its parent ends, however that does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _begin(worker: int) -> None:
    end_with_parent()  # the loader's own check leaves it alive for seconds, and with it the lock of the run's folder


def _unchanged(item: object) -> object:
    return item


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGCHLD: the loader's raises an error wherever the main thread is when a worker ends."""
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if main else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks; see above
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        yield
    if main:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

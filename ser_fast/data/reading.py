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
    try:
        for _ in groups:
            try:
                found = next(batches)
            except RuntimeError as error:
                raise RuntimeError(reader.ended(str(error))) from error
            if isinstance(found, Exception):
                raise found
            yield [torch.from_numpy(unpack(stored)) for stored in found]
    finally:
        with _own_signals():
            del batches  # its __del__ joins the workers


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
    """Start or end workers without the loader's handler of SIGCHLD, and without losing an interrupt.

    That handler raises an error wherever the main thread is when a worker ends. An interrupt would be raised inside
    the hooks of a fork or inside ``__del__``, which ignore errors; it comes after the context. Workers ignore it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks; see above
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)  # the same, by JAX
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        interrupts: list[int] = []
        kept = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))}
        if hasattr(signal, "SIGCHLD"):
            kept[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if interrupts:
        signal.raise_signal(signal.SIGINT)

"""Reading in processes beside the model."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import NamedTuple

from ser_fast.prediction.listing import Item
from ser_fast.prediction.reading import Clip, Reader
from ser_fast.prediction.stream import CLIPS_AT_ONCE, SAMPLES_AT_ONCE, Read, read, read_all

DIED = "the reading process died"
# Fewer items are read in this process: starting others takes longer.
FEW = 64
_CHUNK = 16  # items of a task
_TASK_SAMPLES = 1 << 22  # of a task


class _Task(NamedTuple):
    """Items to read, the first from a block on; ended after ``most`` samples, and another task goes on."""

    items: list[Item]
    block: int = 0
    most: int = _TASK_SAMPLES


# What a task returns: position of the item, clips, error, more, seconds of each block; and what is left of it.
_Blocks = list[tuple[int, list[Clip], str, bool, float]]
_Done = tuple[_Blocks, tuple[int, int] | None]


def read_beside(reader: Reader, items: Iterable[Item], processes: int, few: int = FEW) -> Iterator[Read]:
    """Yield the blocks of the items in their order, read ahead by other processes.

    A process that dies loses nothing: its items are read one by one, and the one that ends a process again gets an
    error.

    Args:
        reader: the reader.
        items: the items; the iterator is advanced by some hundred of them at most ahead of what is yielded.
        processes: number of processes; 0 reads in this one.
        few: fewer items are read in this process too.

    Raises:
        RuntimeError: no process can be started.
    """
    items = iter(items)
    first = list(itertools.islice(items, few))
    items = itertools.chain(first, items)
    if processes == 0 or (len(first) < few and reader.segment is None):
        yield from read_all(reader, items)
        return
    pool = _Pool(reader, processes)
    try:
        pool.start()
        yield from _ordered(pool, items, 1 if reader.segment else _CHUNK, processes)
    finally:
        pool.close()


class _Pool:
    """An executor that can be replaced when one of its processes has died."""

    def __init__(self, reader: Reader, processes: int):
        self.reader, self.processes = reader, processes
        self.context = multiprocessing.get_context()
        if "forkserver" in multiprocessing.get_all_start_methods():
            # A process that has run torch's threads cannot be forked; one that imported the readers can, quickly.
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload([__name__])
        else:
            self.context = multiprocessing.get_context("spawn")
        self.renew()

    def renew(self) -> None:
        self.executor = ProcessPoolExecutor(self.processes, self.context, initializer=_begin)

    def start(self) -> None:
        """Start the processes.

        Raises:
            RuntimeError: they end at once.
        """
        try:
            with _interrupts_blocked():
                first = self.executor.submit(int)
            first.result()
        except (BrokenProcessPool, EOFError) as error:  # EOFError if the server of the processes cannot fork
            fix = 'a script must call this below `if __name__ == "__main__":`, or set workers to 0'
            raise RuntimeError(
                f"workers is {self.processes}, and these processes end at their start; {fix}"
            ) from error

    def submit(self, task: _Task) -> "Future[_Done]":
        try:
            return self.executor.submit(_read, self.reader, *task)
        except BrokenProcessPool as error:
            failed: Future[_Done] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay an interrupt; processes started here inherit this, and so print no traceback while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ordered(pool: _Pool, items: Iterator[Item], size: int, processes: int) -> Iterator[Read]:
    pending: deque[tuple[_Task, Future[_Done]]] = deque()
    most = 2 * processes + CLIPS_AT_ONCE // size
    while True:
        while len(pending) < most and _held(pending) < SAMPLES_AT_ONCE:
            if not (chunk := list(itertools.islice(items, size))):
                break
            pending.append((_Task(chunk), pool.submit(_Task(chunk))))
        if not pending:
            return
        task, future = pending.popleft()
        try:
            blocks, rest = future.result()
        except BrokenProcessPool:
            pool.renew()
            yield from _one_by_one(pool, task)
            pending = deque((one, pool.submit(one) if _broken(it) else it) for one, it in pending)
            continue
        if rest is not None:
            left = _Task(task.items[rest[0] :], rest[1])
            pending.appendleft((left, pool.submit(left)))
        for index, *block in blocks:
            yield Read(task.items[index], *block)


def _one_by_one(pool: _Pool, task: _Task) -> Iterator[Read]:
    """Yield the blocks of a task whose process may have died of one of its items."""
    rest: tuple[int, int] | None = (0, task.block)
    for item in task.items:
        while rest is not None:
            try:
                blocks, rest = pool.submit(_Task([item], rest[1], most=0)).result()
            except BrokenProcessPool:
                pool.renew()
                blocks, rest = [(0, [], DIED, False, 0.0)], None
            for _, *block in blocks:
                yield Read(item, *block)
        rest = (0, 0)


def _held(pending: Iterable[tuple[_Task, Future]]) -> int:
    """Return the samples that wait in memory."""
    done = (future.result()[0] for _, future in pending if future.done() and not future.exception())
    return sum(
        len(clip.samples) for blocks in done for block in blocks for clip in block[1] if clip.samples is not None
    )


def _broken(future: Future) -> bool:
    return not future.done() or isinstance(future.exception(), BrokenProcessPool)


def _begin() -> None:
    """Prepare a reading process: an interrupt is the parent's, and it ends when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (connection.wait([parent]), os._exit(1)), daemon=True).start()


def _read(reader: Reader, items: list[Item], block: int, most: int) -> _Done:
    """Do a :class:`_Task`."""
    blocks: _Blocks = []
    samples = 0
    for index, item in enumerate(items):
        more = True
        while more:
            found = read(reader, item, block)
            blocks.append((index, *found[1:]))
            samples, more, block = samples + found.samples, found.more, block + 1 if found.more else 0
            if samples >= most and (more or index + 1 < len(items)):
                return blocks, (index + (not more), block)
    return blocks, None

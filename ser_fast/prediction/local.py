"""Prediction on this machine: reading processes, the model, and output in parts, shared by the ranks of torchrun."""

import contextlib
import ctypes
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import NamedTuple

from ser_fast.prediction import parts
from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.listing import Item, check, listing
from ser_fast.prediction.predictor import Predictor
from ser_fast.prediction.rows import Columns
from ser_fast.prediction.stream import Found, Read, results
from ser_fast.prediction.summary import Summary
from ser_fast.prediction.workers import read_beside
from ser_fast.training import distributed

Report = Callable[[str], None]
Progress = Callable[[int, float], None]


class Outcome(NamedTuple):
    """Counts of a run that wrote an output file.

    Attributes:
        whole: counts of the whole output, with those of interrupted runs.
        now: counts and times of this run, of all its processes.
    """

    whole: Summary
    now: Summary


class Engine:
    """The model, the reader and the columns of a run.

    Args:
        config: options of the run.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: a list has no column of names.
    """

    def __init__(self, config: PredictConfig):
        self.config = config
        spans = check(config.files) or config.segment is not None
        self.predictor = Predictor(
            config.checkpoint, config.batch_size, config.device, config.threads, config.features
        )
        self.reader = self.predictor.reader(config.segment, config.hop)
        names = tuple(self.predictor.names)
        self.columns = Columns(tuple(self.predictor.classes), spans, config.embeddings, names)
        if config.out is not None and config.out.suffix.lower() == ".parquet":
            self.columns.schema()  # pyarrow may be missing

    def results(self, blocks: Iterator[Read], summary: Summary) -> Iterator[Found]:
        """Yield the results of what was read; the summary counts reading and the model."""
        predict = partial(self.predictor.predict, embeddings=self.config.embeddings)

        def timed(waves):
            begin = perf_counter()
            outputs = predict(waves)
            summary.model += perf_counter() - begin
            return outputs

        def counted() -> Iterator[Read]:
            for block in blocks:
                summary.add_read(block)
                yield self.predictor.prepared(block)

        return results(timed, counted(), self.reader.chunk)

    def read(self, items: Iterator[Item]) -> Iterator[Read]:
        """Yield what reading processes read."""
        return read_beside(self.reader, items, self.config.reading_processes)

    def options(self) -> dict:
        """Return what the output depends on, but for the listing."""
        digest = parts.digest_of_file(self.predictor.path)
        names = ("batch_size", "segment", "hop", "embeddings")
        source = self.predictor.source
        features = {} if source is None else {"features": source.identity}
        return {"checkpoint": digest, "columns": self.columns.names, **features} | {
            name: getattr(self.config, name) for name in names
        }


def answers(engine: Engine, report: Report, summary: Summary) -> Iterator[Found]:
    """Yield the results of a run without an output file, in the order of the listing."""
    begin = perf_counter()
    if engine.predictor.doubt:
        report(engine.predictor.doubt)
    for found in engine.results(engine.read(listing(engine.config.files, report)), summary):
        summary.add(found)
        yield found
    summary.wall = perf_counter() - begin


def run(config: PredictConfig, report: Report, progress: Progress) -> Outcome:
    """Write the results of a run to ``config.out``; see :func:`ser_fast.prediction.run.run`."""
    begin = perf_counter()
    with contextlib.ExitStack() as stack:
        with distributed.agreed():
            engine = Engine(config)
            if engine.predictor.doubt:
                report(engine.predictor.doubt)
            folder = stack.enter_context(parts.Parts(config.out, engine.columns, engine.options()))
        if distributed.from_rank_0(lambda: folder.joined):
            return Outcome(distributed.from_rank_0(folder.remove), Summary())
        # Not agreed(): an error of one process ends all at once, not when the others are done with their parts.
        count, now = _write_parts(engine, folder, report, progress)
        others = distributed.gather(now)[1:]
        whole = distributed.from_rank_0(lambda: folder.join(count))
        for other in others:
            now.merge(other)
    now.wall = perf_counter() - begin
    return Outcome(whole, now)


def _write_parts(engine: Engine, folder: parts.Parts, report: Report, progress: Progress) -> tuple[int, Summary]:
    """Write the missing parts of this rank; return the number of all parts and the counts of the written ones."""
    now, count = Summary(), 0
    begun: deque[tuple[int, list[Item]]] = deque()

    def missing() -> Iterator[Item]:
        nonlocal count
        for number, items in parts.numbered(listing(engine.config.files, report)):
            count = number + 1
            if number % distributed.world() == distributed.rank() and not folder.done(number, items):
                begun.append((number, items))
                yield from items

    def shown(results: Iterator[Found], part: Summary) -> Iterator[Found]:
        files, last = now.files, None
        for found in results:
            yield found
            files, last = files + (found.item is not last), found.item
            progress(files, now.audio + part.audio)

    blocks = engine.read(missing())
    for first in blocks:
        (number, items), part = begun.popleft(), Summary()
        results = engine.results(_of_items(itertools.chain([first], blocks), len(items)), part)
        folder.write(number, items, shown(results, part), part)
        now.merge(part)
        _give_back_memory()
    return count, now


def _give_back_memory() -> None:
    """Return freed memory to the system; glibc keeps it between blocks in use, and takes more with every part."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _of_items(blocks: Iterator[Read], count: int) -> Iterator[Read]:
    """Yield the blocks of the next ``count`` items."""
    while count:
        block = next(blocks)
        yield block
        count -= not block.more

"""Prediction by Ray Data: tasks read, a pool of actors predicts, and the output is that of the local engine."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from ser_fast._require import require
from ser_fast.data.extras import import_extra
from ser_fast.prediction import parts
from ser_fast.prediction.config import PredictConfig, cores
from ser_fast.prediction.listing import Item, listing
from ser_fast.prediction.local import Engine, Outcome, Progress, Report
from ser_fast.prediction.predictor import Predictor
from ser_fast.prediction.reading import Reader
from ser_fast.prediction.stream import Found, Read, predicted, windows
from ser_fast.prediction.summary import Summary
from ser_fast.prediction.workers import read_beside

# Parts of one execution of Ray Data; their names, some 100 MB, are in the memory of this process and of Ray.
_PARTS_AT_ONCE = 256
# Bytes of shared memory of a Ray that is started here, for audio between readers and model.
_STORE = 1 << 30
# Bytes that Ray reserves for an actor. Without a difference to those of reading, Ray would read in the actors.
_ACTOR_MEMORY = 1 << 30

_Row = dict[str, Any]


def run(config: PredictConfig, report: Report, progress: Progress) -> Outcome:
    """Write the results of a run to ``config.out``; see :func:`ser_fast.prediction.run.run`.

    Ray returns the results in the order of the listing, and this process writes them: the parts, the file that they
    become and what resumes an interrupted run are those of the local engine. So are the batches. Ray replaces a
    process that died and repeats its task, whose results nobody has seen.

    Raises:
        ImportError: ray is not installed.
        OutputError: Ray failed, or the output cannot be written; the message says what is safe.
        ValueError: Ray has too few cores or GPUs, or as in the local engine.
    """
    begin = perf_counter()
    import_extra("ray.data", "engine ray", "scale")
    require(config.workers != 0, "workers is 0 with engine ray", "at least 1")
    engine = Engine(replace(config, device="cpu"))
    now, count = Summary(), 0
    with parts.Parts(config.out, engine.columns, engine.options()) as folder:
        if folder.joined:
            return Outcome(folder.remove(), Summary())

        def missing() -> Iterator[_Part]:
            nonlocal count
            for number, items in parts.numbered(listing(config.files, report)):
                count = number + 1
                if not folder.done(number, items):
                    yield _Part(number, items)

        rounds = _rounds(missing())
        first = next(rounds, [])
        with _ray(start=bool(first)):
            for todo in itertools.chain([first], rounds):
                # Closed before Ray is: its thread, which would still run after an error, starts Ray anew otherwise.
                with closing(_rows(config, engine, todo)) as rows:
                    for number, items in todo:
                        part = Summary()
                        folder.write(number, items, _results(rows, items, part, now, progress), part)
                        now.merge(part)
        whole = folder.join(count)
    now.wall = perf_counter() - begin
    return Outcome(whole, now)


class _Part(NamedTuple):
    number: int
    items: list[Item]


def _rounds(todo: Iterator[_Part]) -> Iterator[list[_Part]]:
    while some := list(itertools.islice(todo, _PARTS_AT_ONCE)):
        yield some


@contextmanager
def _ray(start: bool) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine for the time of the context."""
    import ray

    if not start or ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", "local")
    here = {"num_cpus": max(2, cores()), "object_store_memory": _STORE, "include_dashboard": False}
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(here if address == "local" else {}))
    try:
        yield
    finally:
        ray.shutdown()


def _rows(config: PredictConfig, engine: Engine, todo: list[_Part]) -> Generator[_Row, None, None]:
    """Yield the results of the windows of parts, in their order."""
    import ray

    size = engine.reader.chunk
    chunks = [
        {"offset": offset, "items": pickle.dumps([_absolute(item) for item in items[offset : offset + size]])}
        for _, items in todo
        for offset in range(0, len(items), size)
    ]
    if not chunks:
        return
    actors, processors = _actors(config, ray.cluster_resources())
    model = _Model(str(Path(engine.predictor.path).absolute()), config.batch_size, processors, config.embeddings)
    data = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    data = data.flat_map(
        _read, fn_args=(engine.reader,), compute=ray.data.TaskPoolStrategy(config.workers), num_cpus=1
    )
    data = data.map(
        _Actor, fn_constructor_args=(model,), compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=1,
        num_gpus=1 if processors == "cuda" else None, memory=_ACTOR_MEMORY,
    )  # fmt: skip
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    try:
        yield from data.iter_rows()
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise parts.OutputError(f"Ray: {lines[-1]}; finished parts are safe, and the same command resumes") from error


def _actors(config: PredictConfig, resources: dict[str, float]) -> tuple[int, str]:
    """Return the number of actors on a cluster with these resources, and their device."""
    cpus, gpus = (int(resources.get(kind, 0)) for kind in ("CPU", "GPU"))
    device = "cuda" if config.device == "cuda" or (config.device == "auto" and gpus) else "cpu"
    require(device == "cpu" or gpus > 0, "device is cuda", "auto or cpu, for Ray has no GPU")
    require(cpus >= 2, f"Ray has {cpus} cores", "a cluster of 2 or more, for reading and the model")
    most = min(gpus, cpus - 1) if device == "cuda" else cpus - 1  # a core each, and one for reading
    actors = (most if device == "cuda" else cpus // 2) if config.actors is None else config.actors
    require(1 <= actors <= most, f"actors is {actors}", f"in 1..{most} on this cluster")
    return actors, device


def _absolute(item: Item) -> Item:
    """Return an item for processes with another working folder."""
    return item if item.error else item._replace(file=os.path.abspath(item.file))


def _read(chunk: _Row, reader: Reader) -> Iterator[_Row]:
    """Yield the windows of a chunk, whose blocks have the number of the item within its part instead of the item."""
    number = chunk["offset"]

    def numbered() -> Iterator[Read]:
        nonlocal number
        # In a process of its own: Ray would repeat a task for ever whose file ends the process.
        for block in read_beside(reader, pickle.loads(chunk["items"]), processes=1, few=0):
            yield block._replace(item=number)
            number += not block.more

    for index, window in enumerate(windows(numbered(), reader.chunk)):
        yield {"offset": chunk["offset"], "number": index, "window": pickle.dumps(window)}


@dataclass(frozen=True)
class _Model:
    path: str
    batch_size: int
    device: str
    embeddings: bool


class _Actor:
    """Predicts windows."""

    def __init__(self, model: _Model):
        self.embeddings = model.embeddings
        self.predictor = Predictor(model.path, model.batch_size, model.device, threads=1)

    def __call__(self, row: _Row) -> _Row:
        """Return the results of a window, without samples, and its counts."""
        window: list[Read] = pickle.loads(row["window"])
        begin = perf_counter()
        results = [
            found._replace(clip=found.clip and found.clip._replace(samples=None))
            for found in predicted(lambda waves: self.predictor.predict(waves, self.embeddings), window)
        ]
        return {
            "offset": row["offset"],
            "number": row["number"],
            "results": pickle.dumps(results),
            "files": sum(not block.more for block in window),
            "reading": sum(block.seconds for block in window),
            "model": perf_counter() - begin,
        }


def _results(
    rows: Iterator[_Row], items: list[Item], part: Summary, before: Summary, progress: Progress
) -> Iterator[Found]:
    """Yield the results of a part, and count them.

    Args:
        rows: results of windows, of which those of this part are taken.
        items: the items of the part.
        part: its counts.
        before: counts of the parts before.
        progress: called after each window.

    Raises:
        OutputError: results are missing or there twice.
    """
    place = (0, -1)  # offset of the chunk in the part, and number of the window in the chunk
    while part.files < len(items):
        row = next(rows, {"offset": None, "number": None})
        follows = (place[0], place[1] + 1), (part.files, 0)
        place = row["offset"], row["number"]
        if place not in follows:
            raise parts.OutputError(f"Ray: the results after {part.files} files of a part are missing or twice there")
        for name in ("files", "reading", "model"):
            setattr(part, name, getattr(part, name) + row[name])
        for found in pickle.loads(row["results"]):
            yield found._replace(item=items[found.item])
        progress(before.files + part.files, before.audio + part.audio)

"""Time calls on a GPU: by CUDA events, one by one, in rounds in turns, and as CUDA graphs."""

import itertools
import statistics
import time
from collections.abc import Callable

import torch

from ser_fast.backends import state
from ser_fast.backends.measured import BACKENDS

FEWEST, MOST = 5, 30  # bounds of the number of timed calls
ROUNDS, MOST_ROUNDS = 7, 25  # bounds of the number of rounds
TURN = 2e-3  # seconds of a turn at least: several calls if one is shorter


def by(backend: str | None, call: Callable) -> Callable:
    """Return the call on the kernels of a GPU backend; the call itself for any other backend."""
    if backend not in BACKENDS:
        return call

    def run():
        state.current.on_cuda = backend
        return call()

    return run


def once(call: Callable) -> float:
    """Return the seconds of a call and of the wait for it, after three calls to warm up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def median(call: Callable, seconds: float) -> float:
    """Return the median seconds of a call, over as many as fit into ``seconds``, by CUDA events."""
    count = int(seconds / once(call))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(min(max(count, FEWEST), MOST) + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)) / 1e3


def rounds(calls: dict[str, Callable], alone: dict[str, float], seconds: float) -> dict[str, list[float]]:
    """Return the seconds of a call in every round, by name. In each round all calls have a turn, in order.

    Args:
        calls: calls by name, warmed up.
        alone: rough seconds of each.
        seconds: time for all rounds; there are at least ``ROUNDS``.
    """
    counts = {name: max(1, int(TURN / alone[name])) for name in calls}
    whole = sum(alone[name] * count for name, count in counts.items())
    marks = []
    for _ in range(min(max(int(seconds / whole), ROUNDS), MOST_ROUNDS)):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(counts[name]):
                call()
            end.record()
            marks.append((name, begin, end))
    torch.cuda.synchronize()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for name, begin, end in marks:
        found[name].append(begin.elapsed_time(end) / 1e3 / counts[name])
    return found


def captured(call: Callable) -> tuple[object, Callable]:
    """Return the outputs of the call in a CUDA graph, and the graph's replay, which writes them anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph.replay

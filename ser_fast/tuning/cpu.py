"""Measure the rules of the CPU's kernels on this machine, for ``ser-fast tune --device cpu``.

Each rule is a field of :class:`ser_fast.backends.cpu_rules.Rules`. Calls under one value and another take turns. A
value replaces the default only if a case is clearly faster with it and none is slower: the upper bound of the ratio
of the times is below ``FASTER``. By the same measure our kernels replace torch's path for a GRU of few steps.
"""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import ser_fast
from ser_fast.backends import dispatch, state, tuned
from ser_fast.backends.cpu_rules import FEWEST_STEPS, Rules
from ser_fast.functional import attention_pool, power_spectrogram
from ser_fast.tuning import store
from ser_fast.tuning.choice import FASTER, upper_bound
from ser_fast.tuning.schedule import TOTAL

SECONDS = 100  # of two minutes; the measurement that has begun may take the rest
ROUNDS, FEWEST_ROUNDS = 11, 7  # the second is the fewest of which a bound is known
SHORTEST, LONGEST = 2e-3, 4.0  # seconds of one measurement, and of all rounds of a case
SLOWER, DRIFT = 1.05, 0.05
VALUES = {
    "nanoseconds_per_thread": (25_000, 50_000, 100_000, 200_000, 400_000),
    "frames_per_task": (64, 128, 256, 512, 1024),
}
PRECISIONS = {"float32": (torch.float32, 1e-4), "bfloat16": (torch.bfloat16, 5e-2)}  # dtype, tolerance
HIDDEN = (32, 64, 128, 256, 512)
BATCHES = (1, 8, 64)
STEPS = (1, 2, 4, 8, 16, 32, 64)
FIRST = "float32", 16, 8, 128  # the case timed first and last: precision, T, B and H
Say = Callable[[str], None]


def tune(say: Say = print, *, dry_run: bool = False) -> int:
    """Measure the rules, store them and follow them from now on; return the exit status.

    Args:
        say: receives the lines of the report.
        dry_run: only print the schedule.

    Raises:
        ValueError: as :func:`ser_fast.tuning.store.destination`.
        RuntimeError: as :func:`measure`; another process is tuning.
        OSError: the file cannot be written.
    """
    if dry_run:
        say(described())
        say(f"store   the rules in {store.destination()}")
        return 0
    with store.alone("cpu"):
        chosen = measure(say)
        file = store.write(tuned.key("cpu"), rules=dataclasses.asdict(chosen))
    dispatch.reread()
    say(f"stored in {file}")
    return 0


def described() -> str:
    """Return the schedule as text."""
    lines = [f"at most {TOTAL:.0f} s in all, {ROUNDS} rounds of each case, fewer if they take over {LONGEST:.0f} s"]
    lines += [f"rule    {rule}: {', '.join(map(str, values))}" for rule, values in VALUES.items()]
    sizes = ("H", HIDDEN), ("T", STEPS), ("B", BATCHES)
    cases = ", ".join(f"{name}={' '.join(map(str, values))}" for name, values in sizes)
    return "\n".join([*lines, f"rule    fewest_steps: {' and '.join(PRECISIONS)}, {cases}, for {SECONDS} s in all"])


def measure(say: Say = print, seconds: float = SECONDS) -> Rules:
    """Return the rules for this machine; a rule that is not reached in time keeps its default.

    Raises:
        RuntimeError: the kernels did not load, an output is wrong, or the machine's speed has changed meanwhile.
    """
    if not state.current.loaded:
        raise RuntimeError(f"there are no kernels to tune: {state.current.reason}")
    end, chosen, calls = time.monotonic() + seconds, Rules(), small_calls()
    with following(chosen):
        before = statistics.median(against_torch(*FIRST))
        for rule in VALUES:
            default, value = getattr(chosen, rule), best_value(rule, chosen, calls)
            say(f"{rule}: {value}" + (f", the default is {default}" if value != default else ", the default"))
            chosen = dataclasses.replace(chosen, **{rule: value})
            dispatch.follow(chosen)
        chosen = dataclasses.replace(chosen, fewest_steps=fewest_steps(end, say))
        dispatch.follow(Rules())  # as for the first measurement: what the chosen rules gain is no drift
        drift = abs(statistics.median(against_torch(*FIRST)) / before - 1)
    if drift > DRIFT:
        raise RuntimeError(
            f"the same case differs by {100 * drift:.0f} % from the first to the last measurement, so nothing is "
            "stored; tune again when the machine is idle"
        )
    return chosen


@contextlib.contextmanager
def following(chosen: Rules) -> Iterator[None]:
    """Let the kernels follow these rules while the context lasts."""
    before = state.current.rules
    dispatch.follow(chosen)
    try:
        yield
    finally:
        dispatch.follow(before)


def rounds(call: Callable, values: list, enter: Callable) -> dict[object, list[float]]:
    """Return the seconds of a call under each value in each round; ``enter(value)`` is called before it."""
    found, repeats, end = {value: [] for value in values}, {}, time.monotonic() + LONGEST
    for turn in range(-1, ROUNDS):
        if turn >= FEWEST_ROUNDS and time.monotonic() > end:
            break
        for value in values:
            enter(value)
            call()
            count, start = repeats.get(value, 1), time.perf_counter()
            for _ in range(count):
                call()
            taken = (time.perf_counter() - start) / count
            if turn < 0:
                repeats[value] = max(1, math.ceil(SHORTEST / taken))
            else:
                found[value].append(taken)
    return found


def best_value(rule: str, start: Rules, calls: list[Callable]) -> int:
    """Return the value of a rule with which a call is clearly faster than with the default and none is slower."""
    default, values = getattr(start, rule), VALUES[rule]
    slower, faster, sums = set(), set(), dict.fromkeys(values, 0.0)
    for call in calls:
        found = rounds(call, values, lambda value: dispatch.follow(dataclasses.replace(start, **{rule: value})))
        for value, taken in found.items():
            ratios = [one / other for one, other in zip(taken, found[default])]
            sums[value] += math.log(statistics.median(ratios))
            if statistics.median(ratios) > SLOWER:
                slower.add(value)
            if upper_bound(ratios) < FASTER:
                faster.add(value)
    return min([default, *(faster - slower)], key=sums.get)


def small_calls() -> list[Callable]:
    """Return calls of several ops whose work is about what pays for a second thread."""
    window = torch.hamming_window(400)

    def spectrogram(batch: int, seconds: float) -> Callable:
        wave = torch.randn(batch, int(16000 * seconds))
        return lambda: power_spectrogram(wave, window, 1600, 160, (0, 401), center=True)

    def gru(batch: int, frames: int, size: int) -> Callable:
        module, x = ser_fast.GRU(size, size).requires_grad_(False), torch.randn(frames, batch, size)
        return lambda: module(x)

    def pool(batch: int, frames: int, width: int) -> Callable:
        h, w = torch.randn(batch, frames, width), torch.randn(width)
        return lambda: attention_pool(h, w)

    return [
        *(spectrogram(*size) for size in ((1, 0.3), (1, 1), (4, 1), (8, 2))),
        *(gru(*size) for size in ((4, 12, 64), (4, 30, 64), (8, 50, 64), (2, 50, 128))),
        *(pool(*size) for size in ((8, 100, 128), (32, 300, 256))),
    ]


def fewest_steps(end: float, say: Say) -> dict[str, dict[str, int]]:
    """Return by precision and H the fewest steps of a training step that our kernels win, at every batch size."""
    found = {}
    for precision in PRECISIONS:
        for size in HIDDEN:
            steps = fewest_of(precision, size, end)
            if not steps:
                say(f"fewest steps of a GRU with a gradient, {precision} from H={size} on: the time is over")
                if precision in found:  # without rows of their own, larger sizes would take the last one's
                    found[precision] |= {key: value for key, value in FEWEST_STEPS.items() if int(key) >= size}
                return found
            found.setdefault(precision, {})[str(size)] = steps
        said = ", ".join(f"{steps} at H={size}" for size, steps in found[precision].items())
        say(f"fewest steps of a GRU with a gradient, {precision}: {said}; torch below")
    return found


def fewest_of(precision: str, size: int, end: float) -> int | None:
    """Return the first of ``STEPS`` that our kernels win, and the one after it too; None if the time is over."""
    won = []
    for steps in STEPS:
        if time.monotonic() > end:
            return None
        won.append(all(upper_bound(against_torch(precision, steps, batch, size)) < FASTER for batch in BATCHES))
        if won[-2:] == [True, True]:
            return STEPS[len(won) - 2]
    return 2 * STEPS[-1]


def against_torch(precision: str, steps: int, batch: int, size: int) -> list[float]:
    """Return by round the time of a GRU's training step on our kernels as a multiple of its time on torch's.

    Raises:
        RuntimeError: their outputs or gradients differ.
    """
    dtype, tolerance = PRECISIONS[precision]
    ours, theirs = ser_fast.GRU(size, size, dtype=dtype), nn.GRU(size, size, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(steps, batch, size, dtype=dtype, requires_grad=True)
    layer: nn.Module = ours

    def enter(module: nn.Module) -> None:
        nonlocal layer
        layer = module

    def step() -> list[Tensor]:
        y, _ = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))]

    with following(dataclasses.replace(state.current.rules, fewest_steps={precision: {str(size): 1}})):
        found = step()
        enter(theirs)
        for one, other in zip(found, step()):
            error = float((one - other).abs().max() / other.abs().max().clamp(min=1))
            if not error <= tolerance:
                raise RuntimeError(f"a GRU of T={steps} B={batch} H={size} in {precision} is off by {error:.1e}")
        taken = rounds(step, [ours, theirs], enter)
    return [one / other for one, other in zip(taken[ours], taken[theirs])]

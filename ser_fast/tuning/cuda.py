"""Tune a GPU: proof, timing, choice, store. This process opens no GPU; its workers do."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ser_fast.backends import dispatch, measured
from ser_fast.tuning import choice, store
from ser_fast.tuning.cases import MORE, USUAL, Case, Shape, cases
from ser_fast.tuning.process import WORKER, Outcome, run
from ser_fast.tuning.schedule import TOTAL, Schedule, schedule

BUSY = 10  # percent of the time that other processes may use the GPU
SPREAD = 0.2  # spread of the rounds of torch's path in the first case, without the largest and the smallest
DRIFT = 0.05  # change of a path's time in the first case until the end


def tune(
    device: str = "cuda:0",
    shapes: Sequence[Shape] | None = None,
    *,
    everything: bool = False,
    dry_run: bool = False,
    say: Callable[[str], object] = print,
    worker: Sequence[str] = WORKER,
    total: float = TOTAL,
) -> None:
    """Prove the kernels on a GPU, time them against torch, choose, and store the choices.

    Args:
        device: "cuda:NUMBER".
        shapes: T, B, D and H of GRUs; by default ``cases.USUAL``.
        everything: ``cases.MORE`` too.
        dry_run: only print the schedule.
        say: receives the lines of the report.
        worker: command of a worker.
        total: limit in seconds of the whole run.

    Raises:
        ValueError: a shape is invalid or there are too many; ``SER_FAST_TUNED=0``.
        RuntimeError: there is no GPU that can run a kernel, or it is busy, or its speed changes; nothing is stored.
        OSError: the results, which are printed, cannot be stored.
    """
    shapes = list(dict.fromkeys(shapes or (*USUAL, *(MORE if everything else ()))))
    todo = cases(shapes)
    limits = schedule(len(todo), total)
    file = store.destination()
    if dry_run:
        say(described(limits, todo))
        say(f"store   the choices in {file}")
        return
    with store.alone(device.replace(":", "-")):
        end = time.monotonic() + limits.worst
        key, backends = _machine(device, worker, limits)
        say(f"{device} is {key['name']}; {described(limits, todo).splitlines()[0]}")
        report = Report(say)
        _prove(report, device, backends, shapes, worker, limits)
        _time(report, device, todo, worker, limits, end)
        report.choose(todo)
        file = store.write(key, choices=report.choices, banned=report.banned)
    say(f"stored in {file}")
    dispatch.reread()


def described(limits: Schedule, todo: Sequence[Case]) -> str:
    """Return the schedule as text."""
    ops = {op: sum(case.op == op for case in todo) for op in measured.PRECISIONS}
    counts = ", ".join(f"{count} of {op}" for op, count in ops.items())
    return "\n".join([
        f"at most {limits.worst:.0f} s in all",
        f"start   {limits.start:5.1f} s: describe the GPU",
        f"proof   {limits.proof:5.1f} s: all ops by {' and '.join(measured.BACKENDS)}, each in its own process",
        f"timing  {limits.timing:5.1f} s: {len(todo)} cases of {limits.slot:.2f} s ({counts}), the first again last",
    ])  # fmt: skip


@dataclass
class Report:
    """Results of a run, which are printed as they come.

    Args:
        say: receives the lines.
        proven: backends that passed all proofs of an op, by op.
        banned: reasons of those that did not, by "OP by BACKEND".
        timed: seconds of every round by path, by the number of the case.
        choices: as in :mod:`ser_fast.backends.measured`.
    """

    say: Callable[[str], object]
    proven: dict[str, list[str]] = field(default_factory=lambda: {op: [] for op in measured.PRECISIONS})
    banned: dict[str, str] = field(default_factory=dict)
    timed: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    choices: dict[str, dict] = field(default_factory=dict)

    def ban(self, op: str, backend: str, reason: str) -> None:
        """Exclude a backend from an op."""
        self.banned[f"{op} by {backend}"] = reason
        self.proven[op] = [name for name in self.proven[op] if name != backend]
        self.say(f"proof   {op} by {backend}: banned, {reason}")

    def choose(self, todo: Sequence[Case]) -> None:
        """Fill ``choices`` and print them; a size that was not timed whole is left to torch."""
        groups: dict[tuple, list[int]] = {}
        for number, case in enumerate(todo):
            groups.setdefault((case.op, case.precision, case.hidden_size), []).append(number)
        for (op, precision, size), numbers in groups.items():
            if not self.proven[op]:
                continue
            found = [self.timed.get(number, {}) for number in numbers]
            bounds = {
                name: choice.bound(found, name) for name in self.proven[op] if all(name in one for one in found)
            }
            if all("torch" in one for one in found):
                ahead = [name for name, bound in bounds.items() if bound < choice.FASTER]
                medians = {name: [statistics.median(one[name]) for one in found] for name in bounds}
                order = choice.order(medians, ahead)
                said = ", ".join(f"{name} at most {bound:.2f} of torch's time" for name, bound in bounds.items())
            else:  # without a row of its own, a size would take that of the next larger one
                order, said = ["torch"], "not every case was timed"
            choice.nested(self.choices.setdefault(op, {}), precision, size, order)
            named = f"{op} {precision}" + (f" H={size}" if size else "")
            self.say(f"choice  {named}: {order[0]}" + (f" ({said})" if said else ""))


def _machine(device: str, worker: Sequence[str], limits: Schedule) -> tuple[dict, list[str]]:
    """Return the key of the device and the backends that it can run."""
    (outcome,) = run([{"job": "machine", "device": device}], worker, limits.start)
    found = outcome.lines[-1] if outcome.lines else {"error": outcome.ending or "its worker wrote nothing"}
    if "error" in found:
        raise RuntimeError(f"{device} cannot be tuned: {found['error']}")
    if (found["busy"] or 0) > BUSY:
        raise RuntimeError(_busy(device, f"other processes use it {found['busy']} % of the time"))
    backends = [name for name, why in found["refused"].items() if not why]
    if not backends:
        reasons = "; ".join(f"{name} refused, {why}" for name, why in found["refused"].items())
        raise RuntimeError(f"{device} cannot run the kernels: {reasons}")
    return found["key"], backends


def _busy(device: str, why: str) -> str:
    return f"{device} is busy: {why}; nothing is stored. Stop other programs on it and repeat the command"


def _prove(report: Report, device: str, backends: list[str], shapes, worker, limits: Schedule) -> None:
    pairs = [(op, backend) for op in measured.PRECISIONS for backend in backends]
    jobs = [
        {"job": "proof", "device": device, "op": op, "backend": backend, "shapes": shapes} for op, backend in pairs
    ]
    for (op, backend), outcome in zip(pairs, run(jobs, worker, limits.proof)):
        passed = outcome.last("passed")
        if passed:
            report.proven[op].append(backend)
            report.say(f"proof   {op} by {backend}: passed, {passed} checks")
        elif passed == 0:
            report.say(f"proof   {op} by {backend}: no shape fits on the chip")
        else:
            reason = outcome.last("failed") or outcome.ending or "its worker ended without a result"
            report.ban(op, backend, f"{outcome.last('begun') or 'start'}: {reason}")


def _time(report: Report, device: str, todo: Sequence[Case], worker, limits: Schedule, end: float) -> None:
    """Time the cases, the first of them again last; after a worker hung or died the others go on in a new one.

    Raises:
        RuntimeError: the first case is slower or faster at the end, or its rounds spread: the GPU is busy.
    """
    again, failed = len(todo), set()  # the number of the repeated case, and numbers of cases
    while True:
        usable = [number for number, case in enumerate(todo) if report.proven[case.op] and number not in failed]
        left = end - time.monotonic() - (limits.worst - limits.start - limits.proof - limits.timing)
        if not usable or left < limits.slot:
            break
        numbered = {number: todo[number] for number in usable if number not in report.timed} | {
            again: todo[usable[0]]
        }
        jobs = [
            case.asdict() | {"number": number, "backends": report.proven[case.op]}
            for number, case in numbered.items()
        ]
        job = {"job": "time", "device": device, "cases": jobs, "slot": limits.slot, "end": time.time() + left}
        (outcome,) = run([job], worker, left, limits.quiet)
        report.timed |= {line["number"]: line["seconds"] for line in outcome.lines if "seconds" in line}
        for line in outcome.lines:
            if "failed" in line:
                failed.add(line["number"])
                report.say(f"timing  {numbered[line['number']]}: {line['failed']}")
            elif "left out" in line:
                report.say(f"timing  {numbered[line['number']]} by {line['left out']}: {line['error']}")
        if not _culprit(report, numbered, outcome, failed) and usable[0] not in failed:
            break
    if usable:
        _steady(report, device, report.timed.get(usable[0]), report.timed.get(again))


def _culprit(report: Report, numbered: dict[int, Case], outcome: Outcome, failed: set[int]) -> bool:
    """Ban the backend whose call ended a worker early, or drop the case; return whether others can go on."""
    last = outcome.lines[-1] if outcome.lines else {}
    if outcome.ending is None:
        return False
    if "begun" not in last:
        report.say(f"timing  its worker failed: {outcome.ending}")
        return False
    case = numbered[last["number"]]
    if last["begun"] in report.proven[case.op]:
        report.ban(case.op, last["begun"], f"{case}: {outcome.ending}")
    else:
        failed.add(last["number"])
        report.say(f"timing  {case} by torch: {outcome.ending}")
    return True


def _steady(report: Report, device: str, before: dict | None, after: dict | None) -> None:
    """Raise RuntimeError unless both timings of the first case agree and its rounds do not spread."""
    if before is None or after is None:
        raise RuntimeError(f"{device}: the first case could not be timed twice, so nothing is stored")
    for rounds in (before["torch"], after["torch"]):
        inner = sorted(rounds)[1:-1]
        spread = (inner[-1] - inner[0]) / statistics.median(rounds)
        if spread > SPREAD:
            raise RuntimeError(_busy(device, f"the time of one call by torch spreads by {100 * spread:.0f} %"))
    for path in before.keys() & after.keys():
        drift = statistics.median(after[path]) / statistics.median(before[path]) - 1
        if abs(drift) > DRIFT:
            why = f"the first case by {path} took {100 * drift:+.0f} % at the end, more than {100 * DRIFT:.0f} %"
            raise RuntimeError(
                f"{device}: {why}; nothing is stored. Let the GPU's clock settle and repeat the command"
            )

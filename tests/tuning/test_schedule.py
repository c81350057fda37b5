"""The arithmetic of the two minutes, and workers that exceed their limits."""

import itertools
import json
import sys
import time

import pytest

from ser_fast.tuning import process
from ser_fast.tuning.cases import MODES, MORE, USUAL, cases
from ser_fast.tuning.schedule import KILL, LOAD, SLOT, STORE, TOTAL, schedule


@pytest.mark.parametrize("count", [1, 2, 39, 78, 150])
@pytest.mark.parametrize("total", [TOTAL, 60.0, 10.0])
def test_phases_add_up_to_the_whole_time(count, total):
    limits = schedule(count, total)
    assert limits.worst == pytest.approx(total)
    assert min(limits.start, limits.proof, limits.timing, limits.slot) > 0
    load = LOAD * limits.timing / schedule(count).timing
    assert (count + 1) * limits.slot + load == pytest.approx(limits.timing), "the first case is timed twice"


def test_any_shapes_end_in_two_minutes_or_are_refused():
    shapes = [(300, 32, d, h) for d, h in itertools.product((1, 2), range(32, 512, 32))]
    refused = 0
    for number in range(1, len(shapes)):
        try:
            limits = schedule(len(cases(shapes[:number])))
        except ValueError as error:
            refused += 1
            assert "it must be at most 155: give fewer shapes" in str(error)
        else:
            assert limits.worst <= TOTAL and limits.slot >= SLOT and not refused
    assert refused and schedule(len(cases([*USUAL, *MORE]))).slot > SLOT


def test_time_below_the_fixed_costs_is_refused():
    with pytest.raises(ValueError, match="the time is 5 s; it must be above 8 s"):
        schedule(1, 5)
    assert 3 * KILL + STORE == 8


def test_cases_cover_every_op_and_mode_once():
    found = cases(USUAL)
    assert len(found) == len(set(found)) == 39
    assert {(case.op, case.mode) for case in found} == {(op, mode) for op, modes in MODES.items() for mode in modes}
    assert str(found[0]) == "gru float32 T=300 B=32 D=2 H=64, inference" and found[0].hidden_size == 64


def worker(script: str) -> list[str]:
    return [sys.executable, "-c", f"import json, os, signal, subprocess, sys, time\n{script}"]


def test_hanging_workers_end_together_at_the_limit():
    """Also one that ignores signals and has a child: they run at once, so the limit is spent once."""
    stubborn = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps({"begun": "a"}), flush=True)
print('{"cut', end="", flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""
    start = time.monotonic()
    outcomes = process.run([{}] * 3, worker(stubborn), 1.0)
    assert 1.0 <= time.monotonic() - start < 1.0 + KILL + 1
    assert outcomes == [process.Outcome([{"begun": "a"}], "it did not end within 1 s")] * 3


@pytest.mark.thorough
def test_silent_worker_is_killed_and_a_talking_one_is_not():
    talking = "for number in range(8):\n    time.sleep(0.2)\n    print(json.dumps({'n': number}), flush=True)"
    (outcome,) = process.run([{}], worker(talking), 30.0, quiet=1.2)
    assert outcome.ending is None and outcome.last("n") == 7 and outcome.last("none") is None
    (outcome,) = process.run([{}], worker(f"{talking}\ntime.sleep(600)"), 30.0, quiet=1.2)
    assert outcome.ending == "it did not end within 1 s" and outcome.last("n") == 7


def test_worker_gets_its_job_and_environment():
    job = {"job": "machine", "name": "Zürich"}
    script = "print(json.dumps([json.load(sys.stdin), os.environ['SER_FAST_TUNED'], os.environ['SER_FAST_BACKEND']]))"
    (outcome,) = process.run([job], worker(script), 30.0)
    assert json.loads(json.dumps(outcome.lines)) == [[job, "0", "auto"]]
    (outcome,) = process.run([job], worker("sys.stdin.close(); sys.exit('no driver')"), 30.0)
    assert outcome == process.Outcome([], "its process ended with status 1: no driver")

"""The driver of the attacks: it reports every kind of failure with the command that repeats it."""

import random
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough
ROOT = Path(__file__).parents[2]
SAYS = {
    "good": None,
    "wrong": "a wrong result",
    "raises": "KeyError: 'an unexpected error'",
    "crashes": "SIGSEGV",
    "hangs": "no end after 1 s",
    "grows": r"it took 7\d\d MB; at most 600 are allowed",
    "exits": "exit status 3",
}


def attack(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "tests/attack", *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(("kind", "says"), SAYS.items(), ids=SAYS)
def test_driver_reports_a_failure_and_how_to_repeat_it(kind, says):
    number = next(n for n in count() if random.Random(f"5 faulty {n}").choice(list(SAYS)) == kind)
    limit = 1 if says and "no end after 1 s" in says else 60
    result = attack("--seed=5", f"--case={number}", f"--limit={limit}", "faulty")
    assert result.returncode == (says is not None), result.stderr
    assert f"| `faulty` | 1 | {result.returncode} |" in result.stdout
    if says:
        assert re.search(rf"FAILED faulty: {kind}\n  .*{says}", result.stdout, re.S), result.stdout
        assert f"repeat: python tests/attack --seed=5 --case={number} faulty\n" in result.stdout


def test_driver_goes_on_after_crashes():
    result = attack("--seed=5", "--seconds=12", "--limit=1", "faulty")
    cases, failures = map(int, re.search(r"`faulty` \| (\d+) \| (\d+) \|", result.stdout).groups())
    assert result.returncode == 1 and cases >= failures > 1, result.stdout + result.stderr
    assert result.stdout.count("repeat: ") == failures

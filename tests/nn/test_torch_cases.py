"""torch's own cases for GRU and GRUCell, driven in a process of their own (see torch_cases.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.thorough
def test_torch_module_database_passes():
    """None is skipped: what torch's tests leave out on CPU (parity with a GPU, memory formats of images) has no case."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, str(Path(__file__).parents[1] / "torch_cases.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    counts = re.fullmatch(r"(\d+) passed in .*", result.stdout.splitlines()[-1])
    assert counts and int(counts[1]) >= 60, result.stdout[-500:]

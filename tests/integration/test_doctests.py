"""The examples in the docstrings of the library."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_docstring_examples_run():
    names = "_require.py backends/dispatch.py ops nn models recipes pretrained data training prediction"
    paths = [f"ser_fast/{name}" for name in names.split()]
    command = [sys.executable, "-m", "pytest", "-q", "--doctest-modules", "-p", "no:cacheprovider", *paths]
    if importlib.util.find_spec("huggingface_hub") is None:
        command.append("--ignore=ser_fast/prediction/hub.py")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-5000:] + result.stderr[-2000:]

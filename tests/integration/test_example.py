"""docs/examples: a training script without ser_fast, and with the added line; both give the same losses."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SCRIPT = (EXAMPLES / "train_contours.py").read_text()
# The script knows no dtype; float64 shows that what differs in float32 is rounding.
IN_FLOAT64 = "import torch; torch.set_default_dtype(torch.float64)\n"


def patched() -> str:
    """The script after the diff, which is one hunk."""
    _, _, _, *lines = (EXAMPLES / "swap.diff").read_text().splitlines()
    assert [line for line in lines if line[0] != " "] == ["+    import ser_fast; ser_fast.swap(model)"]
    before, after = ("\n".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    assert SCRIPT.count(before) == 1
    return SCRIPT.replace(before, after)


def losses(script: str, path: Path) -> list[float]:
    path.write_text(script)
    result = subprocess.run([sys.executable, path, "12"], env=os.environ | {"OMP_NUM_THREADS": "1"},
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [float(line.split()[-1]) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("start", "tolerance"),
    # Printed to six digits, so that a rounding may turn one of the last; in float32 a dozen steps may turn ten.
    [(IN_FLOAT64, 1.5e-6), ("", 1e-5)],
    ids=["float64", "float32"],
)
@pytest.mark.thorough
def test_example_swap_changes_no_loss(tmp_path, start, tolerance):
    theirs, ours = losses(start + SCRIPT, tmp_path / "theirs.py"), losses(start + patched(), tmp_path / "ours.py")
    assert len(theirs) == len(ours) == 12 and len(set(theirs)) == 12
    assert max(abs(one - other) for one, other in zip(ours, theirs)) <= tolerance


def test_example_follows_a_voice_as_its_model_hears_the_whole():
    example = runpy.run_path(str(EXAMPLES / "microphone.py"))
    model = example["Follower"](memory=30).eval()
    wave = torch.randn(1, 16000)
    for end in (16000, 9000, 401):
        updates = list(model.follow(wave[:, :end].split(example["CHUNK"], 1)))
        with torch.no_grad():
            torch.testing.assert_close(updates[-1], model(wave[:, :end]))
    example["main"](0.5)

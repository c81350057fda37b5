"""docs/gallery: each script runs in small, draws its picture and says what it found; the page shows all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {
    "swap_a_gru": (["--steps=2"], "ms a step"),
    "training_loop": (["--epochs=1"], "speakers s06 and s07 left out: UA"),
    "live_streaming": ([], "%  after"),
    "error_analysis": (["--epochs=1", "--run=run"], "of 96 test utterances are wrong"),
    "export_to_onnx": ([], "logits differ by at most"),
    "measure": (["--frames", "20", "40", "--calls=2"], "40 frames: nn.LSTM"),
}


def test_page_shows_every_script_and_its_picture():
    page = (DOCS / "gallery.md").read_text()
    assert {path.stem for path in (DOCS / "gallery").glob("*.py")} == set(SMALL)
    for name in SMALL:
        assert f"{{literalinclude}} gallery/{name}.py" in page and f"](gallery/{name}.png)" in page
        assert (DOCS / f"gallery/{name}.png").is_file()


@pytest.mark.parametrize("name", SMALL)
def test_gallery_script_draws_its_picture(tmp_path, name):
    if name == "export_to_onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    image = pytest.importorskip("matplotlib.image")
    options, said = SMALL[name]
    result = subprocess.run(
        [sys.executable, DOCS / f"gallery/{name}.py", *options, "--out=picture.png"], cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    picture = image.imread(tmp_path / "picture.png")
    assert picture.shape[0] >= 300 and picture.std() > 0.02  # something is drawn


def test_error_analysis_ends_with_a_failed_training(tmp_path):
    """An earlier run in the same folder is not analysed in place of the new one."""
    result = subprocess.run(
        [sys.executable, DOCS / "gallery/error_analysis.py", "--epochs=0"], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert result.returncode == 1
    assert "epochs is 0" in result.stderr and "Traceback" not in result.stderr

"""The recipes of docs/recipes.md, run with the packages they are for: the line that swaps changes no loss."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
RECIPES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
PACKAGES = {
    "Lightning": ["lightning"],
    "Hugging Face Trainer": ["transformers", "accelerate"],
    "SpeechBrain": ["speechbrain", "torchaudio"],
}


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loss(printed: str) -> float:
    return float(printed.split()[-1])


def test_recipes_cover_every_block_of_the_page():
    assert list(RECIPES) == list(PACKAGES)
    assert PAGE.count("```") == 2 * len(RECIPES)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PACKAGES)
def test_recipe_swap_changes_no_loss(name, tmp_path):
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    plain, lines = re.subn(r"^print\(ser_fast\.swap\(.*\n", "", RECIPES[name], flags=re.MULTILINE)
    assert lines == 1
    swapped = run(RECIPES[name], tmp_path)
    assert "nn.GRU is ser_fast.GRU(40, 32, batch_first=True, bidirectional=True)" in swapped
    # A hundred frames of float32 in another order, 100 · 2⁻²⁴; the other form of the GRU misses by 3e-4 and more.
    assert loss(swapped) == pytest.approx(loss(run(plain, tmp_path)), rel=6e-6)

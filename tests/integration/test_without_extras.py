"""Training from 16 kHz PCM WAV without soundfile, soxr and jsonargparse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from ser_fast.data.corpora.synthetic import synthesize

SCRIPT = """
import importlib.util
import sys
from pathlib import Path

from ser_fast import experiments
from ser_fast.reports import runs
from ser_fast.training import cross_validation
from ser_fast.training.folds import Folds
from ser_fast.training.config import TrainConfig

root = Path(sys.argv[1])
for name in ("soundfile", "soxr", "jsonargparse"):
    assert Path(importlib.util.find_spec(name).origin).parent == root / "blockers"
data, out = str(root / "emodb"), root / "out"
tiny = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}
options = {"data": data, "model": "cgru", "epochs": 1, "batch_size": 4, "validation": "none"}
summary = runs.train(TrainConfig(out=out / "train", test_speakers="08", **options), tiny)
assert summary["utterances"]["test"] == 6, summary
for name, validated in (("plain", cross_validation.cross_validate), ("report", runs.cross_validate)):
    result = validated(TrainConfig(out=out / name, **options), tiny, Folds("loso"))
    assert [run["fold"] for run in result["runs"]] == ["03", "08"], result
experiments.run("attention", experiments.Settings(data, out / "experiments", "tiny"))
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """Voices named as in Emo-DB, 2 emotions by 2 speakers in 3 takes, and modules that cannot be imported."""
    for folder in ("emodb", "blockers"):
        (tmp_path / folder).mkdir()
    for index, speaker in enumerate(("03", "08")):
        for letter, emotion in {"W": "anger", "T": "sadness"}.items():
            for number, take in enumerate("abc"):
                voice = synthesize(emotion, index, number)[:16000].numpy()
                soundfile.write(tmp_path / "emodb" / f"{speaker}a01{letter}{take}.wav", voice, 16000, "PCM_16")
    for name in ("soundfile", "soxr", "jsonargparse"):
        (tmp_path / "blockers" / f"{name}.py").write_text(f"raise ImportError('No module named {name}')")
    return tmp_path


@pytest.mark.thorough
def test_emodb_trains_without_extras(root):
    # One thread: several only wait for each other over tensors this small.
    environment = os.environ | {"PYTHONPATH": str(root / "blockers"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(root)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "could not be drawn" not in result.stdout
    for name in ("train/report.html", "plain/summary.json", "report/report.html", "experiments/attention.md"):
        assert (root / "out" / name).stat().st_size > 0

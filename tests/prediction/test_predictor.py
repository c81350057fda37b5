"""Predictions of files by a checkpoint."""

from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast.data.wav import AudioError
from ser_fast.models import MODELS
from ser_fast.prediction import stream
from ser_fast.prediction.predictor import PredictionError, Predictor
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

OPTIONS = {"channels": (4, 4), "hidden_size": 8}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    save_checkpoint(path, Checkpoint("cgru", OPTIONS, ["x", "y", "z"], weights, {"shortest": 1.5}))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    for take in range(5):
        soundfile.write(folder / f"{take}.wav", 0.1 * torch.randn(6000 * (take + 1)).numpy(), 16000)
    return folder


def test_predictor_flags_files(checkpoint, folder):
    soundfile.write(folder / "silence.wav", torch.zeros(32000).numpy(), 16000)
    found = {path.stem: result for path, result in Predictor(checkpoint).files([folder])}
    assert {name: result.flag for name, result in found.items()} == {
        "0": "short", "1": "", "2": "", "3": "", "4": "", "silence": "silent",
    }  # fmt: skip
    assert found["silence"] == {} and sum(found["0"].values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shortest", [None, "1", -1, 1e300, [2]])
def test_predictor_ignores_damaged_lengths(checkpoint, folder, shortest):
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    save_checkpoint(checkpoint, Checkpoint("cgru", OPTIONS, ["x", "y", "z"], weights, {"shortest": shortest}))
    assert {result.flag for _, result in Predictor(checkpoint).files([folder])} == {""}


def test_predictor_goes_on_after_bad_files(checkpoint, folder, monkeypatch):
    """A batch that does not fit in memory is predicted file by file."""
    (folder / "bad.wav").write_text("no audio")
    loaded = Predictor(checkpoint)
    expected = dict(loaded.files([folder]))
    forward = loaded.model.forward

    def limited(wave, lengths):
        if wave.numel() > 25000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(wave, lengths)

    monkeypatch.setattr(loaded.model, "forward", limited)
    monkeypatch.setattr(stream, "SAMPLES_AT_ONCE", 20000)
    found = dict(loaded.files([folder]))
    assert list(found) == list(expected)
    failed = {path.name: type(result) for path, result in found.items() if isinstance(result, Exception)}
    assert failed == {"4.wav": PredictionError, "bad.wav": AudioError}
    assert "4.wav: 1.9 s cannot be predicted: it does not fit in memory; cut the file" in str(found[folder / "4.wav"])
    for path in found.keys() - {folder / "4.wav", folder / "bad.wav"}:
        assert found[path] == pytest.approx(expected[path], abs=1e-6)


def test_predictor_reports_files_passed_over(checkpoint, folder):
    for number in range(3):
        (folder / f"{number}.wma").touch()
    lines = []
    assert len(list(Predictor(checkpoint).files([folder], lines.append))) == 5
    assert len(lines) == 1 and lines[0].startswith(f"{folder}: passed over 3 of 8 audio files: 3 .wma")

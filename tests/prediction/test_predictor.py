"""Predictions of files by a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data.wav import AudioError
from ser_fast.models import MODELS
from ser_fast.prediction import stream
from ser_fast.prediction.predictor import PredictionError, Predictor
from ser_fast.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

OPTIONS = {"channels": (4, 4), "hidden_size": 8}


def test_predictor_flags_files(checkpoint, folder):
    soundfile.write(folder / "silence.wav", torch.zeros(32000).numpy(), 16000)
    found = {path.stem: result for path, result in Predictor(checkpoint).files([folder])}
    assert {name: result.flag for name, result in found.items()} == {
        "0": "no_speech short", **dict.fromkeys("1234", "no_speech"), "silence": "silent",
    }  # fmt: skip
    assert found["silence"] == {} and sum(found["0"].values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shortest", [None, "1", -1, 1e300, [2]])
def test_predictor_ignores_damaged_lengths(checkpoint, folder, shortest):
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    save_checkpoint(checkpoint, Checkpoint("cgru", OPTIONS, ["x", "y", "z"], weights, {"shortest": shortest}))
    assert {result.flag for _, result in Predictor(checkpoint).files([folder])} == {"no_speech"}


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


def test_predictor_takes_waves_as_they_were_read(checkpoint, folder):
    """int16 and float32 of the same samples, in any order, on torch's threads or on several batches at a time."""
    waves = [soundfile.read(path, dtype="int16")[0] for path in sorted(folder.iterdir())]
    loaded, threaded = (Predictor(checkpoint, batch_size=2, threads=threads) for threads in (None, 2))
    expected = loaded.predict([torch.from_numpy(wave / np.float32(32768)) for wave in waves])
    found = threaded.predict([*reversed(waves)], embeddings=True)
    for output, wanted in zip(reversed(found), expected, strict=True):
        assert output.values == pytest.approx(wanted.values, abs=1e-6) and wanted.embedding is None
        logits = loaded.model.classifier(torch.from_numpy(output.embedding))
        assert logits.softmax(0).tolist() == pytest.approx(output.values, abs=1e-6)
        assert output.best == max(range(3), key=output.values.__getitem__)


def test_predictor_takes_a_checkpoint_in_memory(checkpoint, folder):
    held = Predictor(load_checkpoint(checkpoint))
    assert held.path is None and dict(held.files([folder])) == dict(Predictor(checkpoint).files([folder]))


def test_predictor_names_outputs_that_are_not_finite(checkpoint, folder):
    loaded = Predictor(checkpoint)
    torch.nn.init.constant_(loaded.model.classifier.bias, torch.nan)
    (path, result), *_ = loaded.files([folder / "0.wav"])
    assert str(result) == f"{path}: the model's outputs are not finite" and isinstance(result, PredictionError)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"segment": 0.001}, "segment is 0.001"), ({"segment": 4, "hop": 1e-9}, "hop is 1e-09")],
)
def test_predictor_refuses_segments_below_a_frame(checkpoint, options, found):
    """A tiny hop would give segments without end."""
    with pytest.raises(ValueError, match=f"{found}; it must be at least 0.*, a frame of the model"):
        Predictor(checkpoint).reader(**options)


@pytest.mark.parametrize("name", ["a.wav", Path("a.wav"), b"."])
def test_predictor_refuses_a_single_name(checkpoint, name):
    """A text is a list of letters, of which "." would be the present folder."""
    with pytest.raises(TypeError, match=r"paths is .+; it must be a list of files, folders or lists of files"):
        dict(Predictor(checkpoint, device="cpu").files(name))


def test_predictor_refuses_cuda_without_a_gpu(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is cuda; it must be auto or cpu"):
        Predictor(checkpoint, device="cuda")

"""Run folders written by commit 3ef9275, one epoch of each model on the synthetic corpus, load and resume.

``old_runs/MODEL/expected.json`` holds what that commit itself gave: the logits of ``best.safetensors`` on
:func:`tones`, and the second epoch's numbers after resuming. They were written with

    ser-fast train --data=synthetic --model=MODEL --epochs=1 --batch_size=64 --seed=3 --device=cpu --out=MODEL

``functionals`` was trained with ``--functionals.groups=[rhythm,thirds]``. The attention of ``bigru_mha`` has a kernel since
then, which draws other random numbers for dropout: ``with_kernels`` is the second epoch of the version that brought it.

``values`` is a regression, of ``cgru`` on synthetic-sentiment by commit 54e669a, which trained in the corpus's unit.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from selection import important

from ser_fast import backends
from ser_fast.cli import main
from ser_fast.prediction.predictor import Predictor
from ser_fast.training.evaluation import EvaluateConfig, evaluate

FOLDERS = Path(__file__).parent / "old_runs"
MODELS = ("cgru", "bigru_mha", "functionals")


def expected(model: str) -> dict:
    return json.loads((FOLDERS / model / "expected.json").read_text())


def tones() -> tuple[torch.Tensor, torch.Tensor]:
    """Two waves of sines at 16 kHz, the second one shorter, and their lengths."""
    time = torch.arange(24000) / 16000
    rising = 0.3 * torch.sin(2 * math.pi * 220 * time * (1 + 0.1 * time))
    steady = 0.1 * torch.sin(2 * math.pi * 900 * time) + 0.05 * torch.sin(2 * math.pi * 170 * time)
    steady[15000:] = 0
    return torch.stack([rising, steady]), torch.tensor([24000, 15000])


@pytest.mark.parametrize("model", [*MODELS, "values"])
def test_old_checkpoint_gives_the_same_logits(model, request):
    """float32 sums in another order: another instruction set moves a logit of at most 0.5 by up to 2e-6."""
    if model == "functionals":  # its logarithms amplify the other rounding of torch's FFT
        request.getfixturevalue("needs_kernels")
    with torch.no_grad():
        logits = Predictor(FOLDERS / model).model(*tones())
    torch.testing.assert_close(logits, torch.tensor(expected(model)["logits"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", important(MODELS, lambda model: model == "bigru_mha"))
def test_old_run_resumes_to_the_same_metrics(model, tmp_path):
    """Six Adam steps in float32; another instruction set moves a loss of 1.8 by up to 1e-7 per rounding of a sum."""
    run = shutil.copytree(FOLDERS / model, tmp_path / model)
    options = [f"--config={run / 'config.json'}", f"--out={run}", "--epochs=2"]
    assert main(["train", *options]) == 0
    first, second = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert first == json.loads((FOLDERS / model / "metrics.jsonl").read_text())
    wanted = expected(model)
    wanted |= wanted.get("with_kernels", {}) if backends.loaded else {}
    losses = wanted["epoch_2"]["loss"], wanted["epoch_2"]["valid_loss"], wanted["test_loss"]
    tested = json.loads((run / "summary.json").read_text())["best"]["loss"]
    assert (second["loss"], second["valid_loss"], tested) == pytest.approx(losses, rel=0, abs=1e-5)
    assert abs(second["accuracy"] - wanted["epoch_2"]["accuracy"]) <= 1 / 345  # one utterance near a boundary


def test_old_run_of_values_resumes_to_the_same_metrics(tmp_path, capsys):
    """Its optimizer and last layer are in the corpus's unit, in which the second epoch continues."""
    run = shutil.copytree(FOLDERS / "values", tmp_path / "values")
    assert main(["train", f"--config={run / 'config.json'}", f"--out={run}", "--epochs=2"]) == 0
    first, second = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert first == json.loads((FOLDERS / "values" / "metrics.jsonl").read_text())
    wanted, summary = expected("values"), json.loads((run / "summary.json").read_text())
    found = {name: second[name] for name in wanted["epoch_2"]} | {"test_loss": summary["best"]["loss"]}
    assert found == pytest.approx(wanted["epoch_2"] | {"test_loss": wanted["test_loss"]}, rel=0, abs=2e-5)
    assert {"ccc", "acc2"} <= summary["best"].keys() and "could not be drawn" not in (run / "report.html").read_text()
    assert "validation MAE" in capsys.readouterr().out


def test_old_run_of_values_is_evaluated_as_it_was(tmp_path):
    folder = FOLDERS / "values"
    result = evaluate(EvaluateConfig(str(folder), part="test", out=tmp_path, device="cpu"))
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert {name: result["metrics"][name] for name in best if name != "loss"} == pytest.approx(
        {name: value for name, value in best.items() if name != "loss"}, abs=1e-4
    )
    assert "test part of the run" in result["protocol"]

"""Training runs: what they learn, what they leave, and that an interruption changes nothing."""

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from selection import important

from ser_fast.data.batches import LengthSortedBatches, pad
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.dataset import Dataset, load_dataset
from ser_fast.models import CGRU, BiGRUMHA
from ser_fast.prediction.predictor import Predictor
from ser_fast.reports import figures, html
from ser_fast.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ser_fast.training.config import TrainConfig, resumed, run_folder, run_options
from ser_fast.training.memory import is_out_of_memory
from ser_fast.training.predictions import read_csv
from ser_fast.training.reporter import Reporter
from ser_fast.training.task import task_of
from ser_fast.training.trainer import Trainer, fit_statistics, predict

EMOTIONS = ("anger", "neutral", "sadness")
TINY = {"channels": (4, 4), "hidden_size": 8}


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A folder per class of synthetic voices: 3 emotions, 3 speakers, 6 takes."""
    root = tmp_path_factory.mktemp("voices")
    for emotion in EMOTIONS:
        for speaker in range(3):
            folder = root / emotion / f"s{speaker}"
            folder.mkdir(parents=True)
            for take in range(6):
                soundfile.write(folder / f"{take}.wav", synthesize(emotion, speaker, take).numpy(), 16000)
    return root


@pytest.fixture(scope="module")
def dataset(voices) -> Dataset:
    return load_dataset(f"folders:{voices}", 16000)


def config(out: Path, **changes) -> TrainConfig:
    options = {"model": "cgru", "test_speakers": "s2", "valid_fraction": 0.2, "epochs": 3, "batch_size": 6}
    return TrainConfig(out=out, **(options | changes))


class Kept(Reporter):
    """Keeps the name and arguments of every call."""

    def __init__(self):
        self.calls = []

    def on_batch(self, *given):
        self.calls.append(("on_batch", given))

    def on_epoch(self, row):
        self.calls.append(("on_epoch", row))

    def on_notice(self, text):
        self.calls.append(("on_notice", text))


def train(config: TrainConfig, dataset: Dataset, reporter=None, options=TINY) -> Trainer:
    """Run to the end, as the command line does; the trainer afterwards."""
    with run_folder(config.out, run_options(config, options)) as folder:
        trainer = Trainer(config, options, dataset, dataset.split(**config.held_out), folder, reporter)
        trainer.run()
    return trainer


def test_trainer_without_test_keeps_the_best_epoch(dataset, tmp_path):
    trainer = train(config(tmp_path, test_speakers="", test_fraction=0.0), dataset)
    assert len(trainer.split.train) + len(trainer.split.valid) == len(dataset.labels) and trainer.split.valid
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert best.progress["epoch"] == trainer.progress.best_epoch
    assert all(torch.equal(weight, best.weights[name]) for name, weight in trainer.model.state_dict().items())


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    assert without_seconds(metrics(one)) == without_seconds(metrics(other))
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
    assert (first["best"], first["last"]) == (second["best"], second["last"])
    for name in ("best.safetensors", "last.safetensors"):
        tensors, others = load_file(one / name), load_file(other / name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name


def test_interrupted_run_resumes_to_the_same_result(dataset, tmp_path):
    train(config(tmp_path / "whole"), dataset)

    class Interrupt(Reporter):
        def on_batch(self, epoch, share, *_):
            if epoch == 2 and share > 0.4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "parts"), dataset, Interrupt())
    assert len(metrics(tmp_path / "parts")) == 1
    kept = Kept()
    train(config(tmp_path / "parts"), dataset, kept)
    assert kept.calls[0] == ("on_notice", f"resuming after epoch 1 of {tmp_path / 'parts'}")
    assert [given["epoch"] for name, given in kept.calls if name == "on_epoch"] == [2, 3]
    batches = [given for name, given in kept.calls if name == "on_batch"]
    assert [epoch for epoch, *_ in batches] == sorted(epoch for epoch, *_ in batches) and batches[-1][:2] == (3, 1.0)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.thorough
def test_killed_run_resumes_to_the_same_result(voices, tmp_path):
    def command(out: Path) -> list[str]:
        options = {"data": f"folders:{voices}", "out": out, "model": "cgru", "test_speakers": "s2", "epochs": 3,
                   "batch_size": 1, "valid_fraction": 0.2, "cgru.channels": "[4, 4]", "cgru.hidden_size": 8}  # fmt: skip
        return [sys.executable, "-m", "ser_fast", "train", *(f"--{name}={value}" for name, value in options.items())]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(command(whole), check=True, capture_output=True)
    run = subprocess.Popen(command(parts), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (parts / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert 1 <= len(metrics(parts)) < 3 and not (parts / "summary.json").exists()
    subprocess.run(command(parts), check=True, capture_output=True)
    assert_same_run(whole, parts)
    assert not [path for path in parts.rglob("*") if path.name.endswith(".tmp")]


def test_trainer_learns_and_leaves_finished_runs(dataset, tmp_path):
    long = config(tmp_path / "run", epochs=12, batch_size=4, learning_rate=5e-3)
    train(long, dataset)
    rows = metrics(long.out)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    before = {path: path.stat().st_mtime_ns for path in long.out.glob("*.safetensors")}
    train(long, dataset)
    assert len(before) == 2 and all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_run_can_be_made_longer(dataset, tmp_path):
    train(config(tmp_path / "grown", epochs=1), dataset)
    train(config(tmp_path / "grown", epochs=2), dataset)
    train(config(tmp_path / "whole", epochs=2), dataset)
    assert_same_run(tmp_path / "grown", tmp_path / "whole")


def test_run_of_the_former_default_validation_resumes(dataset, tmp_path):
    """Until the default became "auto" it was "random", and checkpoints did not keep a digest of the parts."""
    train(config(tmp_path / "whole", epochs=2, validation="random"), dataset)
    train(config(tmp_path / "parts", epochs=1, validation="random"), dataset)
    checkpoint = load_checkpoint(tmp_path / "parts" / "last.safetensors")
    del checkpoint.progress["parts"]
    save_checkpoint(tmp_path / "parts" / "last.safetensors", checkpoint)
    today = config(tmp_path / "parts", epochs=2)
    assert today.validation == "auto" and resumed(config(tmp_path / "new")).validation == "auto"
    train(resumed(today), dataset)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_run_refuses_to_resume_with_other_parts(dataset, tmp_path, monkeypatch):
    train(config(tmp_path, epochs=1), dataset)
    drawn = dataset.split(**config(tmp_path).held_out)
    moved = dataclasses.replace(drawn, train=drawn.valid, valid=drawn.train)
    monkeypatch.setattr(Dataset, "split", lambda self, **_: moved)
    with pytest.raises(ValueError, match="drew other parts of the corpus by the same options; name a new folder"):
        train(config(tmp_path, epochs=2), dataset)


def test_run_can_be_moved(dataset, tmp_path):
    train(config(tmp_path / "here", epochs=1), dataset)
    (tmp_path / "here").rename(tmp_path / "there")
    assert train(config(tmp_path / "there", epochs=2, data="elsewhere"), dataset).progress.epoch == 2


@pytest.mark.parametrize(
    "change",
    [
        {"names": lambda names: ["other", *names[1:]]},
        {"labels": lambda labels: labels[::-1]},
        {"classes": lambda classes: ["Anger", *classes[1:]]},
        {"waves": lambda waves: [waves[0][:-1], *waves[1:]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_trainer_refuses_a_changed_corpus(change, dataset, tmp_path):
    train(config(tmp_path, epochs=1), dataset)
    ((name, edit),) = change.items()
    changed = dataclasses.replace(dataset, **{name: edit(getattr(dataset, name))})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"data is synthetic, whose corpus differs from the one that the run in"):
        train(config(tmp_path, epochs=2), changed)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_trainer_refuses_a_folder_in_use(dataset, tmp_path):
    options = run_options(config(tmp_path), TINY)
    with run_folder(tmp_path, options):
        (tmp_path / ".last.safetensors.1.tmp").write_text("being written")
        with pytest.raises(ValueError, match="which another process is using"):
            train(config(tmp_path), dataset)
        assert (tmp_path / ".last.safetensors.1.tmp").exists()
    train(config(tmp_path, epochs=1), dataset)
    assert not (tmp_path / ".last.safetensors.1.tmp").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("thesis.txt", "ten years of work", "which holds other files"),
        (".thesis.tmp", "ten years of work", "which holds other files"),
        ("config.json", '{"name": "other project"}', "whose config.json is not of such a run"),
        ("config.json", "[1]", "whose config.json is not of such a run"),
        ("config.json", '{"epochs": 1', "whose config.json is not readable JSON"),
        ("config.json", '{"epochs": 3, "seed": 0}', "which contains a run with different augment, balance, .*"),
    ],
)
def test_trainer_refuses_a_foreign_folder(file, content, reason, dataset, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"out is .*, {reason}.*; it must be a new folder"):
        train(config(tmp_path), dataset)
    assert contents(tmp_path) == {tmp_path / file: content.encode()}


def test_trainer_refuses_a_folder_that_cannot_be_made(dataset, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="which cannot be written"):
        train(config(tmp_path / "file" / "run"), dataset)


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_trainer_replaces_a_lost_best_checkpoint(damage, dataset, tmp_path):
    train(config(tmp_path, epochs=2), dataset)
    damage(tmp_path / "best.safetensors")
    kept = Kept()
    trainer = train(config(tmp_path, epochs=2), dataset, kept)
    assert trainer.progress.best_epoch == 2
    assert re.search(r"best\.safetensors .*; epoch 2 replaces it as the best", kept.calls[1][1])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == summary["last"] and summary["best_epoch"] == 2


def test_trainer_refuses_a_damaged_last_checkpoint(dataset, tmp_path):
    train(config(tmp_path, epochs=1), dataset)
    (tmp_path / "last.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"last\.safetensors is not a whole .*; remove .* to begin again"):
        train(config(tmp_path, epochs=2), dataset)


def test_trainer_refuses_damaged_progress(dataset, tmp_path):
    train(config(tmp_path, epochs=1), dataset)
    last = tmp_path / "last.safetensors"
    checkpoint = load_checkpoint(last)
    checkpoint.progress["rows"] = 5
    save_checkpoint(last, checkpoint)
    with pytest.raises(
        CheckpointError, match=r"last\.safetensors: progress has the epoch 1; .*; remove .* to begin again"
    ):
        train(config(tmp_path, epochs=2), dataset)


NO_MEMORY = {
    "MemoryError": MemoryError(),
    "ours and torch's on the CPU": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    "torch's on Windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("place", ["forward", "step", "evaluation", "statistics"])
@pytest.mark.parametrize("error", important(NO_MEMORY, lambda name: name == "MemoryError"))
def test_batch_too_large_for_memory_is_named(error, place, dataset, tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise NO_MEMORY[error]

    name = "bigru_mha" if place == "statistics" else "cgru"
    options = {"hidden_size": 8} if place == "statistics" else TINY
    target = {"step": "torch.optim.Adam.step", "statistics": "ser_fast.nn.PowerSpectrogram.forward"}
    if place == "evaluation":
        forward = CGRU.forward
        monkeypatch.setattr(CGRU, "forward", lambda self, *given: (forward if self.training else fail)(self, *given))
    else:
        monkeypatch.setattr(target.get(place, "ser_fast.models.CGRU.forward"), fail)
    count = r"(\d utterances of up to \d\.\d s do|an utterance of \d\.\d s does)"
    with pytest.raises(RuntimeError, match=rf"batch_size is \d+, and {count} not fit in memory; .* \(.+\)$"):
        train(config(tmp_path, model=name), dataset, options=options)


def test_only_lack_of_memory_is_named_so(dataset, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    other = RuntimeError("unsupported memory format option ChannelsLast")
    monkeypatch.setattr(CGRU, "forward", lambda *_: (_ for _ in ()).throw(other))
    with pytest.raises(RuntimeError, match=r"^unsupported memory format"):
        train(config(tmp_path), dataset)


def test_predict_refuses_logits_not_finite(dataset):
    model = BiGRUMHA(3, hidden_size=4, num_heads=2)
    torch.nn.init.constant_(model.classifier.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        predict(model, dataset.batches([0, 1], 2), task_of(dataset.classes, "auto"), torch.device("cpu"))


def test_statistics_come_from_the_training_part_alone(dataset, tmp_path):
    trainer = train(config(tmp_path, model="bigru_mha", epochs=1), dataset, options={"hidden_size": 8})
    front = trainer.model.spectrogram
    front.normalize = False
    frames = torch.cat([front(dataset.waves[index][None])[0] for index in trainer.split.train]).double()
    assert torch.allclose(front.mean.double(), frames.mean(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(front.std.double(), frames.std(0, correction=0), rtol=1e-4)


def test_statistics_of_a_silent_bin_are_finite():
    model = BiGRUMHA(2, hidden_size=4, num_heads=2)
    fit_statistics(model, LengthSortedBatches([torch.zeros(2000), torch.zeros(3000)], [0, 1], 2))
    assert torch.isfinite(model.eval()(torch.zeros(1, 2000))).all()


def test_balanced_epoch_ends_with_its_schedule(dataset, tmp_path, monkeypatch):
    rates = []
    step = Trainer._step
    monkeypatch.setattr(
        Trainer, "_step", lambda self, batch: rates.append(self.optimizer.param_groups[0]["lr"]) or step(self, batch)
    )
    uneven = dataset.part([i for i, label in enumerate(dataset.labels) if label != 1 or i % 3 == 0])
    train(config(tmp_path, epochs=2, schedule="cosine", balance=True, bucket=1), uneven)
    assert rates[-1] == min(rates[1:]) and len(set(rates)) == len(rates)  # the first is the warm-up
    shares = LengthSortedBatches([torch.zeros(9)] * 10, [0] * 7 + [1] * 3, 4, balance=True)
    assert len(shares) == len(list(shares.epoch(torch.Generator().manual_seed(0)))) == 4


def test_scheduled_run_cannot_be_made_longer(dataset, tmp_path):
    train(config(tmp_path, epochs=1, schedule="cosine"), dataset)
    with pytest.raises(ValueError, match="which contains a run with different epochs"):
        train(config(tmp_path, epochs=2, schedule="cosine"), dataset)


def test_patience_ends_a_run(dataset, tmp_path):
    # so small a rate changes no prediction, and hardly the loss
    trainer = train(config(tmp_path, epochs=30, patience=2, optimizer="sgd", learning_rate=1e-30), dataset)
    assert trainer.progress.epoch == 3 and trainer.progress.best_epoch == 1


def test_run_without_validation_tests_the_last_epoch(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=2, validation="none"), dataset)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best_epoch"] == 2 and summary["best"] == summary["last"]
    assert summary["utterances"] == {"train": 36, "valid": 0, "test": 18}
    assert summary["protocol"] == "speakers s2 held out; weights of the last epoch"
    assert "score" not in trainer.progress.rows[0]


@pytest.mark.parametrize("optimizer", important(["adam", "sgd", "adamw", "rmsprop", "adagrad"], 2))
def test_every_optimizer_learns_and_resumes(optimizer, dataset, tmp_path):
    rate = 0.1 if optimizer == "sgd" else 2e-3
    options = {"optimizer": optimizer, "learning_rate": rate, "batch_size": 18, "validation": "random"}
    train(config(tmp_path / "whole", epochs=3, **options), dataset)
    train(config(tmp_path / "parts", epochs=1, **options), dataset)
    train(config(tmp_path / "parts", epochs=3, **options), dataset)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert metrics(tmp_path / "whole")[-1]["loss"] < metrics(tmp_path / "whole")[0]["loss"]


AUGMENTED = {"speeds": [0.9, 1.0, 1.1], "snr": [10, 20], "time_masks": 1, "freq_masks": 1, "mixup": 0.3}


def test_augmented_run_resumes_to_the_same_result(dataset, tmp_path):
    options = {"augment": AUGMENTED, "batch_size": 12, "bucket": 2, "balance": True}
    train(config(tmp_path / "whole", epochs=2, **options), dataset)
    train(config(tmp_path / "parts", epochs=1, **options), dataset)
    train(config(tmp_path / "parts", epochs=2, **options), dataset)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(config(tmp_path / "plain", epochs=1, batch_size=12, bucket=2, balance=True), dataset)
    assert metrics(tmp_path / "plain")[0]["loss"] != metrics(tmp_path / "whole")[0]["loss"]


def test_spec_augment_acts_in_training_alone(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=1, augment={"freq_masks": 2, "freq_mask": 0.5}), dataset)
    model, wave = trainer.model, dataset.waves[0][None]
    model.dropout.p = 0.0
    spec, lengths = model.spectrogram(wave, torch.tensor([wave.shape[1]]))
    assert model.eval().spec_augment(spec, lengths) is spec and torch.equal(model(wave), model(wave))
    assert not torch.equal(model.train().spec_augment(spec, lengths), spec)
    assert not torch.equal(model(wave), model(wave))
    assert model.state_dict().keys() == CGRU(3, **TINY).state_dict().keys()


def test_run_keeps_predictions_by_name(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=1), dataset)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [dataset.names[i] for i in trainer.split.test]
    assert [row["truth"] for row in rows] == [dataset.classes[dataset.labels[i]] for i in trainer.split.test]
    assert {row["speaker"] for row in rows} == {"s2"}
    right = sum(row["truth"] == row["predicted"] for row in rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert right / len(rows) == pytest.approx(summary["best"]["accuracy"])
    loaded = load_checkpoint(tmp_path / "best.safetensors")
    assert (loaded.progress["data"], loaded.progress["corpus"]) == (dataset.name, dataset.digest())
    model, batch = loaded.build(), [dataset.waves[i] for i in trainer.split.test]
    with torch.no_grad():
        probabilities = model(*pad(batch)).softmax(1)
    written = [[float(row[f"p_{name}"]) for name in dataset.classes] for row in rows]
    torch.testing.assert_close(torch.tensor(written), probabilities, rtol=1e-4, atol=1e-6)
    assert [row["predicted"] for row in rows] == [dataset.classes[max(range(3), key=p.__getitem__)] for p in written]
    kept = read_csv(tmp_path / "predictions.csv", dataset.classes)
    assert [row[:4] for row in kept] == [row[:4] for row in trainer.predictions]


def test_predictions_of_an_older_version_are_read(tmp_path):
    (tmp_path / "predictions.csv").write_text("name,speaker,truth,predicted\na,s0,anger,sadness\n")
    assert read_csv(tmp_path / "predictions.csv", list(EMOTIONS)) == [("a", "s0", "anger", "sadness", ())]


def test_run_learns_and_predicts_values(dataset, tmp_path):
    valued = dataclasses.replace(
        dataset, classes=[], labels=[label - 1.0 for label in dataset.labels], sentiment_scale=1.0
    )
    trainer = train(config(tmp_path, epochs=12, batch_size=4, learning_rate=5e-3), valued)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"mae", "corr", "acc2", "acc5", "f1"} <= summary["best"].keys()
    assert metrics(tmp_path)[-1]["loss"] < 0.8 * metrics(tmp_path)[0]["loss"]
    best = max(trainer.progress.rows, key=lambda row: row["score"])
    assert summary["best_epoch"] == best["epoch"] and best["score"] == -best["valid_mae"]
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, dataset.waves[0].numpy(), 16000)
    ((_, result),) = Predictor(tmp_path).files([voice])
    assert result.keys() == {"value"} and math.isfinite(result["value"])


@pytest.mark.parametrize("validation", ["random", "none"])
def test_run_of_values_off_the_sentiment_scale(validation, dataset, tmp_path):
    """On a scale from 1 to 5 the signs of values are all positive: shares of signs would be 100 %."""
    valued = dataclasses.replace(dataset, classes=[], labels=[1.0 + 2 * label for label in dataset.labels])
    kept = Kept()
    trainer = train(config(tmp_path, validation=validation), valued, kept)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"].keys() == {"ccc", "mae", "corr", "loss"}
    assert {given[3] for name, given in kept.calls if name == "on_batch"} == {None}
    expected = {"epoch", "loss", "utterances", "seconds"}
    expected |= {"score", "valid_loss", "valid_ccc", "valid_mae", "valid_corr"} if trainer.split.valid else set()
    assert all(row.keys() == expected for row in trainer.progress.rows)
    # The output starts at the mean, 3: the mean absolute error is 4 / 3 at once, where from 0 it would be 3. The loss
    # is in units of the values' deviation, 1.63.
    assert trainer.progress.rows[0]["loss"] < 1
    if trainer.split.valid:
        best = min(trainer.progress.rows, key=lambda row: row["valid_mae"])
        assert summary["best_epoch"] == best["epoch"]
    figures.loss_curves({"one": trainer.progress.rows}, tmp_path / "loss.png")
    assert html.scores({"best": summary["best"]})[0] == ["", "CCC", "MAE", "Pearson r"]


def test_run_of_values_resumes_without_its_former_shares(dataset, tmp_path):
    """Runs of values of any scale used to have shares of signs in their rows and metrics."""
    valued = dataclasses.replace(dataset, classes=[], labels=[label - 1.0 for label in dataset.labels])
    train(config(tmp_path, epochs=1), dataclasses.replace(valued, sentiment_scale=3.0))
    rows = train(config(tmp_path, epochs=2), valued).progress.rows
    assert "accuracy" in rows[0] and "accuracy" not in rows[1]
    figures.loss_curves({"one": rows}, tmp_path / "loss.png")


@pytest.mark.parametrize(("changes", "sentence"), [({"loss": "cross_entropy"}, "loss is cross_entropy, but data has values"),
                                                   ({"label_smoothing": 0.1}, "label_smoothing is 0.1, but data has values")])  # fmt: skip
def test_run_of_values_refuses_options_of_classes(changes, sentence, dataset, tmp_path):
    valued = dataclasses.replace(dataset, classes=[], labels=[float(label) for label in dataset.labels])
    with pytest.raises(ValueError, match=sentence):
        train(config(tmp_path, **changes), valued)


def test_branches_of_a_model_have_the_mean_of_their_losses(dataset, tmp_path):
    options = {
        "members": 2,
        "groups": ["rhythm"],
        "channels": 4,
        "hidden_size": 4,
        "conv_dropout": 0.0,
        "dropout": 0.0,
    }
    given = config(tmp_path, model="descriptor_gru", validation="none", epochs=1, clip=1e9)
    with run_folder(given.out, run_options(given, options)) as folder:
        trainer = Trainer(given, options, dataset, dataset.split(**given.held_out), folder)
        batch = next(trainer.batches["train"].epoch(torch.Generator().manual_seed(0), trainer._edit, lazy=True))
        numbers = torch.zeros(2)
        trainer.model.train()
        trainer._backward(batch, numbers)
        found = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
        trainer.model.zero_grad()
        branches = trainer.model.branch_logits(batch.wave, batch.lengths)
        targets = trainer.task.targets(batch.labels)
        loss = sum(torch.nn.functional.cross_entropy(branch, targets) for branch in branches) / 3
        loss.backward()
    assert float(numbers[0]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert int(numbers[1]) == int(
        (trainer.model.classify(batch.wave, batch.lengths).argmax(1) == targets.argmax(1)).sum()
    )
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_model_with_branches_resumes_to_the_same_result(dataset, tmp_path):
    options = {"members": 2, "groups": ["rhythm", "trends"], "channels": 4, "hidden_size": 4}
    given = config(tmp_path / "whole", model="descriptor_gru", validation="none")
    whole = train(given, dataset, options=options)
    short = dataclasses.replace(given, out=tmp_path / "short", epochs=1)
    train(short, dataset, options=options)
    resumed_run = train(dataclasses.replace(short, epochs=3), dataset, options=options)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed_run.model.state_dict()[name]), name

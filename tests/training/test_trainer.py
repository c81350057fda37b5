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

from ser_fast.data.batches import LengthSortedBatches
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.dataset import Dataset, load_dataset
from ser_fast.models import CGRU, BiGRUMHA
from ser_fast.training.checkpoint import CheckpointError
from ser_fast.training.config import TrainConfig, learning_rate, run_folder, run_options
from ser_fast.training.predictor import Predictor
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


def test_interrupted_in_an_epoch_and_resumed_equals_uninterrupted(dataset, tmp_path):
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


def test_killed_in_an_epoch_and_resumed_equals_uninterrupted(voices, tmp_path):
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


def test_the_loss_falls_and_a_finished_run_is_left_as_it_is(dataset, tmp_path):
    long = config(tmp_path / "run", epochs=12, batch_size=4, learning_rate=5e-3)
    train(long, dataset)
    rows = metrics(long.out)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    before = {path: path.stat().st_mtime_ns for path in long.out.glob("*.safetensors")}
    train(long, dataset)
    assert len(before) == 2 and all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_run_can_be_made_longer(dataset, tmp_path):
    train(config(tmp_path / "grown", epochs=1), dataset)
    train(config(tmp_path / "grown", epochs=2), dataset)
    train(config(tmp_path / "whole", epochs=2), dataset)
    assert_same_run(tmp_path / "grown", tmp_path / "whole")


def test_a_run_can_be_moved(dataset, tmp_path):
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
def test_a_corpus_that_changed_is_noticed(change, dataset, tmp_path):
    train(config(tmp_path, epochs=1), dataset)
    ((name, edit),) = change.items()
    changed = dataclasses.replace(dataset, **{name: edit(getattr(dataset, name))})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"data is synthetic, whose corpus differs from the one that the run in"):
        train(config(tmp_path, epochs=2), changed)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_two_processes_cannot_write_one_folder(dataset, tmp_path):
    options = run_options(config(tmp_path), TINY)
    with run_folder(tmp_path, options):
        (tmp_path / ".last.safetensors.1.tmp").write_text("being written")
        with pytest.raises(ValueError, match="where another process is at work"):
            train(config(tmp_path), dataset)
        assert (tmp_path / ".last.safetensors.1.tmp").exists()
    train(config(tmp_path, epochs=1), dataset)
    assert not (tmp_path / ".last.safetensors.1.tmp").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("thesis.txt", "ten years of work", "which holds other files"),
        (".thesis.tmp", "ten years of work", "which holds other files"),
        ("config.json", '{"name": "other project"}', "whose config.json is not of a run"),
        ("config.json", "[1]", "whose config.json is not of a run"),
        ("config.json", '{"epochs": 1', "whose config.json is not readable JSON"),
        ("config.json", '{"epochs": 3, "seed": 0}', "where a run with another augment, balance, .* lies"),
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(file, content, reason, dataset, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"out is .*, {reason}.*; it must be a new folder"):
        train(config(tmp_path), dataset)
    assert contents(tmp_path) == {tmp_path / file: content.encode()}


def test_a_folder_that_cannot_be_made_is_refused(dataset, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="which cannot be written"):
        train(config(tmp_path / "file" / "run"), dataset)


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_a_lost_best_checkpoint_is_replaced_and_said(damage, dataset, tmp_path):
    train(config(tmp_path, epochs=2), dataset)
    damage(tmp_path / "best.safetensors")
    kept = Kept()
    trainer = train(config(tmp_path, epochs=2), dataset, kept)
    assert trainer.progress.best_epoch == 2
    assert re.search(r"best\.safetensors .*; epoch 2 replaces it as the best", kept.calls[1][1])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"] == summary["last"] and summary["best_epoch"] == 2


def test_a_damaged_last_checkpoint_says_what_to_do(dataset, tmp_path):
    train(config(tmp_path, epochs=1), dataset)
    (tmp_path / "last.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"last\.safetensors is not a whole .*; remove .* to begin again"):
        train(config(tmp_path, epochs=2), dataset)


def test_a_batch_too_large_for_memory_is_named(dataset, tmp_path, monkeypatch):
    def too_much(*_):
        return torch.empty(1 << 60)

    monkeypatch.setattr("ser_fast.models.cgru.CGRU.forward", too_much)
    with pytest.raises(
        RuntimeError, match=r"batch_size is 6, and \d utterances of up to \d\.\d s do not fit in memory"
    ):
        train(config(tmp_path), dataset)


def test_logits_that_are_not_finite_are_no_class(dataset):
    model = BiGRUMHA(3, hidden_size=4, num_heads=2)
    torch.nn.init.constant_(model.classifier.bias, torch.nan)
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        predict(model, dataset.batches([0, 1], 2), task_of(dataset.classes, [], "auto"), torch.device("cpu"))


def test_batches_are_neighbours_in_length_and_cover_everything_once():
    waves = [torch.full((length,), float(length)) for length in (5, 1, 9, 2, 8, 3, 7)]
    batches = LengthSortedBatches(waves, list(range(7)), 3)
    assert batches.groups == [[1, 3, 5], [0, 6, 4], [2]]
    seen = []
    for batch in batches.epoch(torch.Generator().manual_seed(0)):
        assert batch.wave.shape == (len(batch.index), batch.lengths.max())
        for row, index in enumerate(batch.index):
            assert torch.equal(batch.wave[row, : batch.lengths[row]], waves[index])
            assert not batch.wave[row, batch.lengths[row] :].any() and batch.labels[row] == index
        seen += batch.index
    assert sorted(seen) == list(range(7))


def test_statistics_come_from_the_training_part_only(dataset, tmp_path):
    trainer = train(config(tmp_path, model="bigru_mha", epochs=1), dataset, options={"hidden_size": 8})
    front = trainer.model.spectrogram
    front.normalize = False
    frames = torch.cat([front(dataset.waves[index][None])[0] for index in trainer.split.train]).double()
    assert torch.allclose(front.mean.double(), frames.mean(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(front.std.double(), frames.std(0, correction=0), rtol=1e-4)


def test_a_silent_bin_does_not_divide_by_zero():
    model = BiGRUMHA(2, hidden_size=4, num_heads=2)
    fit_statistics(model, LengthSortedBatches([torch.zeros(2000), torch.zeros(3000)], [0, 1], 2))
    assert torch.isfinite(model.eval()(torch.zeros(1, 2000))).all()


def test_l1_loss_is_between_softmax_and_one_hot():
    logits = torch.tensor([[2.0, 0.0]])
    p = logits.softmax(1)
    task = task_of(["x", "y"], [0, 1], "l1")
    assert task.loss(logits, task.targets([0])) == pytest.approx(float((1 - p[0, 0] + p[0, 1]) / 2))


def test_label_smoothing_spreads_a_part_of_every_target():
    logits, truth = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1])
    for name, by_hand in (
        ("cross_entropy", torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.3)),
        ("l1", (logits.softmax(1) - torch.tensor([[0.1, 0.8, 0.1]])).abs().mean()),
    ):
        task = task_of(["x", "y", "z"], [0, 1, 2], name, 0.3)
        torch.testing.assert_close(task.loss(logits, task.targets([1])), by_hand)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0 and finite"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; it must be above 0 and finite"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0 and finite"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be 0 or more and finite"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296; it must be below 2"),
        ({"out": Path("")}, "out is '.'; it must be a folder of its own"),
        ({"valid_fraction": 1.0}, "valid_fraction is 1.0; it must be between 0 and 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be in 0..1, 1 excluded"),
        ({"patience": -1}, "patience is -1; it must be at least 0"),
        ({"patience": 3, "validation": "none"}, "patience is 3; it must be 0 if validation is none"),
        ({"test_fold": "11/10"}, "test_fold is '11/10'; it must be like 3/10"),
        (
            {"test_fold": "1/10", "test_speakers": "03"},
            "test_fold is 1/10, but test_speakers are given; omit one of them",
        ),
        ({"augment": {"mixup": -1.0}}, "mixup is -1.0; it must be 0 or in"),
    ],
)
def test_bad_options_get_one_clear_error(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize("given", ["03,08", " 08, 03,", ["03", "08"], ["08", "03", "08"]])
def test_test_speakers_may_be_written_as_one_likes(given):
    assert TrainConfig(test_speakers=given).held_out["test_speakers"] == ["03", "08"]
    assert TrainConfig(test_speakers=10).held_out["test_speakers"] == ["10"]
    assert TrainConfig().held_out["test_speakers"] == []


def test_batches_can_be_drawn_from_buckets_and_cover_everything_once():
    waves = [torch.zeros(length) for length in torch.randint(1, 900, (40,)).tolist()]
    batches = LengthSortedBatches(waves, [0] * 40, 4, bucket=3)
    epochs = []
    for seed in range(2):
        groups = [batch.index for batch in batches.epoch(torch.Generator().manual_seed(seed))]
        assert sorted(index for group in groups for index in group) == list(range(40))
        assert all([len(waves[i]) for i in group] == sorted(len(waves[i]) for i in group) for group in groups)
        epochs.append(groups)
    assert sorted(epochs[0]) != sorted(epochs[1])
    assert [batch.index for batch in batches.epoch()] == batches.groups


@pytest.mark.parametrize("bucket", [0, 2])
def test_balanced_epochs_have_as_many_of_every_class(bucket):
    labels = [0] * 10 + [1] * 4 + [2]
    batches = LengthSortedBatches([torch.zeros(n + 1) for n in range(15)], labels, 4, bucket=bucket, balance=True)
    seen = [index for batch in batches.epoch(torch.Generator().manual_seed(0)) for index in batch.index]
    assert [sum(labels[i] == label for i in seen) for label in range(3)] == [10, 10, 10]
    assert set(seen) == set(range(15))
    assert max(seen.count(i) for i in range(10, 14)) == 3 and min(seen.count(i) for i in range(10, 14)) == 2
    assert sorted(i for batch in batches.epoch() for i in batch.index) == list(range(15))


def test_a_balanced_epoch_ends_where_its_schedule_does(dataset, tmp_path, monkeypatch):
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


def test_the_cosine_schedule_rises_and_falls_to_nothing():
    config = TrainConfig(schedule="cosine", learning_rate=2.0)
    rates = [learning_rate(config, step / 100) for step in range(101)]
    assert rates[0] < 0.1 and max(rates) == max(rates[3:8]) > 1.9 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[52] == pytest.approx(1 + math.cos(math.pi * 0.52))
    assert learning_rate(TrainConfig(learning_rate=2.0), 0.7) == 2.0


def test_a_schedule_that_counts_its_epochs_cannot_be_made_longer(dataset, tmp_path):
    train(config(tmp_path, epochs=1, schedule="cosine"), dataset)
    with pytest.raises(ValueError, match="where a run with another epochs lies"):
        train(config(tmp_path, epochs=2, schedule="cosine"), dataset)


def test_patience_ends_a_run_that_no_longer_improves(dataset, tmp_path):
    # so small a rate changes no prediction, and hardly the loss
    trainer = train(config(tmp_path, epochs=30, patience=2, optimizer="sgd", learning_rate=1e-30), dataset)
    assert trainer.progress.epoch == 3 and trainer.progress.best_epoch == 1


def test_without_a_validation_the_last_epoch_is_tested(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=2, validation="none"), dataset)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best_epoch"] == 2 and summary["best"] == summary["last"]
    assert summary["utterances"] == {"train": 36, "valid": 0, "test": 18}
    assert summary["protocol"] == "speakers s2 held out; weights of the last epoch"
    assert "score" not in trainer.progress.rows[0]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_every_optimizer_learns_and_resumes(optimizer, dataset, tmp_path):
    rate = 0.1 if optimizer == "sgd" else 2e-3
    options = {"optimizer": optimizer, "learning_rate": rate, "batch_size": 18}
    train(config(tmp_path / "whole", epochs=3, **options), dataset)
    train(config(tmp_path / "parts", epochs=1, **options), dataset)
    train(config(tmp_path / "parts", epochs=3, **options), dataset)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert metrics(tmp_path / "whole")[-1]["loss"] < metrics(tmp_path / "whole")[0]["loss"]


AUGMENTED = {"speeds": [0.9, 1.0, 1.1], "snr": [10, 20], "time_masks": 1, "freq_masks": 1, "mixup": 0.3}


def test_augmentation_is_drawn_again_alike_after_an_interruption(dataset, tmp_path):
    options = {"augment": AUGMENTED, "batch_size": 12, "bucket": 2, "balance": True}
    train(config(tmp_path / "whole", epochs=2, **options), dataset)
    train(config(tmp_path / "parts", epochs=1, **options), dataset)
    train(config(tmp_path / "parts", epochs=2, **options), dataset)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(config(tmp_path / "plain", epochs=1, batch_size=12, bucket=2, balance=True), dataset)
    assert metrics(tmp_path / "plain")[0]["loss"] != metrics(tmp_path / "whole")[0]["loss"]


def test_masks_fall_on_training_alone(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=1, augment={"freq_masks": 2, "freq_mask": 0.5}), dataset)
    model, wave = trainer.model, dataset.waves[0][None]
    model.dropout.p = 0.0
    spec, lengths = model.spectrogram(wave, torch.tensor([wave.shape[1]]))
    assert model.eval().spec_augment(spec, lengths) is spec and torch.equal(model(wave), model(wave))
    assert not torch.equal(model.train().spec_augment(spec, lengths), spec)
    assert not torch.equal(model(wave), model(wave))
    assert model.state_dict().keys() == CGRU(3, **TINY).state_dict().keys()


def test_predictions_are_kept_by_name(dataset, tmp_path):
    trainer = train(config(tmp_path, epochs=1), dataset)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [dataset.names[i] for i in trainer.split.test]
    assert [row["truth"] for row in rows] == [dataset.classes[dataset.labels[i]] for i in trainer.split.test]
    assert {row["speaker"] for row in rows} == {"s2"}
    right = sum(row["truth"] == row["predicted"] for row in rows)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert right / len(rows) == pytest.approx(summary["best"]["accuracy"])


def test_values_are_learnt_and_predicted(dataset, tmp_path):
    valued = dataclasses.replace(dataset, classes=[], labels=[label - 1.0 for label in dataset.labels])
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


@pytest.mark.parametrize(("changes", "sentence"), [({"loss": "cross_entropy"}, "loss is cross_entropy, but data has values"),
                                                   ({"label_smoothing": 0.1}, "label_smoothing is 0.1, but data has values")])  # fmt: skip
def test_options_of_classes_are_refused_for_values(changes, sentence, dataset, tmp_path):
    valued = dataclasses.replace(dataset, classes=[], labels=[float(label) for label in dataset.labels])
    with pytest.raises(ValueError, match=sentence):
        train(config(tmp_path, **changes), valued)

"""Training runs: what they learn, what they leave, and that an interruption changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from ser_fast.batches import LengthSortedBatches
from ser_fast.corpora.synthetic import synthesize
from ser_fast.metrics import classification
from ser_fast.models import BiGRUMHA
from ser_fast.training import (
    Dataset,
    TrainConfig,
    Trainer,
    fit_statistics,
    load_dataset,
    loss_function,
    only_writer,
    split,
)

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
    whole = Trainer(config(tmp_path / "whole"), TINY, dataset)
    whole.run()

    def interrupt(row: dict) -> None:
        if row["epoch"] == 2 and row.get("done", 0) > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path / "parts"), TINY, dataset, interrupt).run()
    assert len(metrics(tmp_path / "parts")) == 1
    again = Trainer(config(tmp_path / "parts"), TINY, dataset)
    assert again.progress.epoch == 1
    again.run()
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
    out = tmp_path / "run"
    Trainer(config(out, epochs=12, batch_size=4, learning_rate=5e-3), TINY, dataset).run()
    rows = metrics(out)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    before = (out / "last.safetensors").stat().st_mtime_ns
    Trainer(config(out, epochs=12, batch_size=4, learning_rate=5e-3), TINY, dataset).run()
    assert (out / "last.safetensors").stat().st_mtime_ns == before
    with pytest.raises(
        ValueError, match=r"out is .*, where a run with another learning_rate lies; it must be a new folder"
    ):
        Trainer(config(out, epochs=12, batch_size=4, learning_rate=1e-3), TINY, dataset)


def test_two_processes_cannot_write_one_folder(dataset, tmp_path):
    trainer = Trainer(config(tmp_path, epochs=1), TINY, dataset)
    with only_writer(tmp_path), pytest.raises(ValueError, match="where another process is training"):
        trainer.run()
    trainer.run()


def test_a_run_can_be_made_longer(dataset, tmp_path):
    Trainer(config(tmp_path / "grown", epochs=1), TINY, dataset).run()
    Trainer(config(tmp_path / "grown", epochs=2), TINY, dataset).run()
    Trainer(config(tmp_path / "whole", epochs=2), TINY, dataset).run()
    assert_same_run(tmp_path / "grown", tmp_path / "whole")


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
    trainer = Trainer(config(tmp_path, model="bigru_mha"), {"hidden_size": 8}, dataset)
    front = trainer.model.spectrogram
    front.normalize = False
    frames = torch.cat([front(dataset.waves[index][None])[0] for index in trainer.split.train]).double()
    assert torch.allclose(front.mean.double(), frames.mean(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(front.std.double(), frames.std(0, correction=0), rtol=1e-4)


def test_a_silent_bin_does_not_divide_by_zero():
    model = BiGRUMHA(2, hidden_size=4, num_heads=2)
    fit_statistics(model, LengthSortedBatches([torch.zeros(2000), torch.zeros(3000)], [0, 1], 2))
    assert torch.isfinite(model.eval()(torch.zeros(1, 2000))).all()


def test_splits_are_disjoint_stratified_and_named(dataset):
    held_out = split(dataset.speakers, dataset.labels, config(Path("x")))
    assert {dataset.speakers[i] for i in held_out.test} == {"s2"}
    assert held_out.protocol.startswith("speakers s2 held out")
    drawn = split(dataset.speakers, dataset.labels, config(Path("x"), test_speakers="", test_fraction=1 / 3))
    assert drawn.protocol.startswith("a random 33% of the utterances held out, speakers shared")
    for parts in (held_out, drawn):
        assert sorted(parts.train + parts.valid + parts.test) == list(range(len(dataset.labels)))
        assert {dataset.labels[i] for i in parts.valid} == {0, 1, 2}


def test_measures_are_the_fields():
    found = classification([0, 0, 0, 1], [0, 0, 1, 1], ["a", "b", "c"])
    assert found["accuracy"] == 0.75 and found["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found["per_class"]["b"]["precision"] == 0.5 and found["per_class"]["c"]["support"] == 0


def test_l1_loss_is_between_softmax_and_one_hot():
    logits = torch.tensor([[2.0, 0.0]])
    p = logits.softmax(1)
    assert loss_function("l1")(logits, torch.tensor([0])) == pytest.approx(float((1 - p[0, 0] + p[0, 1]) / 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"valid_fraction": 1.0}, "valid_fraction is 1.0; it must be between 0 and 1"),
    ],
)
def test_bad_options_get_one_clear_error(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**changes)


def test_bad_splits_get_one_clear_error(dataset):
    with pytest.raises(ValueError, match=r"test_speakers is \['x'\]; it must be among \['s0', 's1', 's2'\]"):
        split(dataset.speakers, dataset.labels, config(Path("x"), test_speakers="x"))
    with pytest.raises(ValueError, match="it must be fewer than all speakers"):
        split(dataset.speakers, dataset.labels, config(Path("x"), test_speakers="s0,s1,s2"))
    with pytest.raises(ValueError, match=r"test_fraction is 0\.01; it must leave every class in both parts"):
        split(dataset.speakers, dataset.labels, config(Path("x"), test_speakers="", test_fraction=0.01))

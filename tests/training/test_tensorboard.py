"""Event files of runs, as TensorBoard reads them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast import cli
from ser_fast.data.dataset import Dataset, load_dataset
from ser_fast.reports import runs
from ser_fast.training import cross_validation, distributed
from ser_fast.training.config import TrainConfig, learning_rate, run_folder, run_options
from ser_fast.training.folds import Folds
from ser_fast.training.trainer import Trainer

LOG = {"log": "tensorboard"}
TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A folder per class of noise of 3 speakers."""
    root, draw = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    for label in ("anger", "sadness"):
        for speaker in range(3):
            folder = root / label / f"s{speaker}"
            folder.mkdir(parents=True)
            for take in range(3):
                soundfile.write(folder / f"{take}.wav", draw.uniform(-0.5, 0.5, 4000 + 100 * take), 16000)
    return root


@pytest.fixture(scope="module")
def dataset(voices) -> Dataset:
    return load_dataset(f"folders:{voices}", 16000)


def config(out: Path, **changes) -> TrainConfig:
    options = {"model": "cgru", "test_speakers": "s2", "epochs": 3, "batch_size": 4, "validation": "random"}
    return TrainConfig(out=out, **options | {"device": "cpu", "valid_fraction": 0.3} | changes)


def train(config: TrainConfig, dataset: Dataset) -> dict:
    with run_folder(config.out, run_options(config, TINY)) as folder:
        return Trainer(config, TINY, dataset, dataset.split(**config.held_out), folder).run()


def events(run: Path):
    """Return what TensorBoard reads of a run folder; the test is skipped without the package."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(run / "tensorboard")).Reload()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(run)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(run: Path, config: TrainConfig) -> dict:
    """Return the scalars that follow from the other files of a run."""
    found: dict[str, list] = {}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        values = {f"train/{name}": row[name] for name in ("loss", "accuracy")}
        values["train/learning_rate"] = learning_rate(config, row["epoch"] / config.epochs)
        values["train/utterances_per_second"] = row["utterances"] / row["seconds"]
        values |= {f"valid/{name[6:]}": value for name, value in row.items() if name.startswith("valid_")}
        for name, value in values.items():
            found.setdefault(name, []).append((row["epoch"], pytest.approx(value)))
    best = json.loads((run / "summary.json").read_text())["best"]
    for name in ("loss", "accuracy", "recall", "precision", "f1"):
        found[f"test/{name}"] = [(config.epochs, pytest.approx(best[name]))]
    return found


def test_events_are_those_of_the_run(dataset, tmp_path):
    pytest.importorskip("tensorboard")
    logged = config(tmp_path, schedule="cosine", **LOG)
    train(logged, dataset)
    found = scalars(tmp_path)
    assert found == expected(tmp_path, logged)
    assert found["train/learning_rate"][-1][1] == pytest.approx(0, abs=1e-9)
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events(tmp_path).PluginTagToContent("hparams")["_hparams_/session_start_info"]
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["learning_rate"].number_value == 1e-3
    assert options["augment.mixup"].number_value == 0 and options["test_speakers"].string_value == "['s2']"


def test_resumed_run_has_every_step_once(dataset, tmp_path, monkeypatch):
    """The second epoch is logged, but the process ends before it is kept; then the finished run is repeated."""
    pytest.importorskip("tensorboard")
    logged = config(tmp_path, **LOG)

    def killed(trainer, keep=Trainer._keep):
        if trainer.progress.epoch == 2:
            raise KeyboardInterrupt
        keep(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_keep", killed)
        train(logged, dataset)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2]
    train(logged, dataset)
    assert scalars(tmp_path) == expected(tmp_path, logged)
    train(logged, dataset)
    assert scalars(tmp_path) == expected(tmp_path, logged)
    longer = config(tmp_path, epochs=4, **LOG)
    train(longer, dataset)
    assert scalars(tmp_path) == expected(tmp_path, longer)


def test_log_may_change_when_a_run_resumes(dataset, tmp_path):
    """The epochs before are logged too, and nothing is logged without the option."""
    pytest.importorskip("tensorboard")
    train(config(tmp_path, epochs=2), dataset)
    assert not (tmp_path / "tensorboard").exists()
    logged = config(tmp_path, **LOG)
    train(logged, dataset)
    assert scalars(tmp_path) == expected(tmp_path, logged)
    before = json.loads((tmp_path / "config.json").read_text())
    del before["log"]  # as an older version wrote it
    (tmp_path / "config.json").write_text(json.dumps(before))
    files = list((tmp_path / "tensorboard").iterdir())
    train(config(tmp_path), dataset)
    assert list((tmp_path / "tensorboard").iterdir()) == files


def test_other_ranks_log_nothing(dataset, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    options = config(tmp_path, **LOG)
    row = {"epoch": 1, "loss": 1.0, "utterances": 1, "seconds": 1.0}
    with run_folder(tmp_path, run_options(options, TINY)) as folder:
        for rank in (1, 0):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            trainer = Trainer(options, TINY, dataset, dataset.split(**options.held_out), folder)
            trainer.reporter.on_epoch(row)
            trainer.reporter.close()
            assert (tmp_path / "tensorboard").exists() == (rank == 0)


def test_train_command_logs_the_confusion_matrix(voices, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    for slow in ("learning", "utterances"):
        monkeypatch.setattr(runs, slow, lambda *_: [])
    words = [
        "--model=cgru",
        "--cgru.hop_length=640",
        "--epochs=1",
        "--test_speakers=s2",
        "--validation=none",
        "--device=cpu",
    ]
    assert (
        cli.main(["train", f"--data=folders:{voices}", "--log=tensorboard", f"--out={tmp_path / 'run'}", *words]) == 0
    )
    found = events(tmp_path / "run")
    image = found.Images("test/confusion")[0]
    assert image.step == 1 and image.encoded_image_string.startswith(b"\x89PNG") and image.width > 100


def test_every_fold_of_cv_is_a_run_of_its_own(voices, tmp_path):
    """The trials that choose among candidates are none."""
    pytest.importorskip("tensorboard")
    options = config(tmp_path, data=f"folders:{voices}", epochs=1, test_speakers="", validation="none", **LOG)
    folds = Folds("loso", seeds=1, inner_folds=2, choose=[{"learning_rate": 0.01}])
    cross_validation.cross_validate(options, TINY, folds)
    found = sorted(path.parent.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    assert found == [tmp_path / "seed0" / f"fold{number:02}" for number in (1, 2, 3)]
    for run in found:
        best = json.loads((run / "summary.json").read_text())["best"]
        assert scalars(run)["test/recall"] == [(1, pytest.approx(best["recall"]))]


@pytest.mark.parametrize("command", ["train", "cv"])
def test_missing_tensorboard_is_said_before_anything_is_read(voices, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("ser_fast.training.corpus.load_corpus", None)
    options = config(tmp_path / "run", data=f"folders:{voices}", test_speakers="", **LOG)
    with pytest.raises(
        ImportError, match=r"log=tensorboard needs tensorboard: pip install 'ser_fast\[tensorboard\]'"
    ):
        runs.train(options, TINY) if command == "train" else runs.cross_validate(options, TINY, Folds())
    assert not (tmp_path / "run").exists()


def test_log_takes_a_list_or_nothing():
    assert TrainConfig().log == TrainConfig(log=[]).log == []
    assert (
        TrainConfig(log="tensorboard").log == TrainConfig(log=["tensorboard", "tensorboard"]).log == ["tensorboard"]
    )
    with pytest.raises(ValueError, match=r"log names 'wandb'; it must be one of tensorboard, or omitted"):
        TrainConfig(log="tensorboard,wandb")

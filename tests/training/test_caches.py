"""Training gives the same result to the last digit wherever the corpus is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from ser_fast.data import cache, waves
from ser_fast.data.dataset import load_dataset
from ser_fast.training import cross_validation
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.cross_validation import cross_validate
from ser_fast.training.folds import Folds
from ser_fast.training.reporter import Reporter
from ser_fast.training.trainer import Trainer

KINDS = [("memory", -1), ("disk", 1), ("disk", 0), ("none", 0), ("none", 2)]
MODELS = {"cgru": {"channels": (4, 4), "hidden_size": 8}, "functionals": {}}


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A folder per class of 3 speakers' noise, in several formats and rates, one class smaller than the others."""
    root, draw = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    for label, takes in (("anger", 4), ("neutral", 2), ("sadness", 4)):
        for speaker in range(3):
            folder = root / label / f"s{speaker}"
            folder.mkdir(parents=True)
            for take in range(takes):
                rate = (16000, 22050)[speaker == 1]
                wave = draw.uniform(-0.5, 0.5, draw.integers(6000, 16000))
                soundfile.write(folder / f"{take}.{('wav', 'flac')[take % 2]}", wave, rate, subtype="PCM_16")
    return root


def config(out: Path, voices: Path, **changes) -> TrainConfig:
    options = {"model": "cgru", "epochs": 2, "batch_size": 4, "test_speakers": "s2", "valid_fraction": 0.2}
    return TrainConfig(data=f"folders:{voices}", out=out, **options | changes)


def train(config: TrainConfig, reporter: Reporter | None = None) -> tuple:
    """Return what the run writes, without times, and the digest of its corpus."""
    options = MODELS[config.model]
    dataset = load_dataset(config.data, 16000, storage=config.storage())
    with run_folder(config.out, run_options(config, options)) as folder:
        Trainer(config, options, dataset, dataset.split(**config.held_out), folder, reporter).run()
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    times = [row.pop("seconds") for row in rows]
    assert len(times) == config.epochs
    weights = {name: tensor.tolist() for name, tensor in load_file(config.out / "best.safetensors").items()}
    return rows, (config.out / "predictions.csv").read_text(), dataset.digest(), weights


@pytest.mark.parametrize(
    ("model", "augment", "kinds"),
    [
        ("cgru", {"speeds": [0.9, 1.0, 1.1], "snr": [5.0, 20.0], "time_masks": 1, "mixup": 0.2}, KINDS),
        ("functionals", {"speeds": [0.9, 1.0]}, KINDS[::2]),  # it reads what its cache of features lacks
    ],
)
def test_training_is_the_same_from_every_cache(voices, tmp_path, model, augment, kinds):
    same = {"model": model, "augment": augment, "bucket": 2, "balance": True, "cache_dir": str(tmp_path / "cache")}
    found = [
        train(config(tmp_path / f"{kind}{workers}", voices, cache=kind, workers=workers, **same))
        for kind, workers in kinds
    ]
    assert all(one == found[0] for one in found)


def test_cached_features_read_no_waves(voices, tmp_path, monkeypatch):
    read, original = [], waves.read_utterance
    monkeypatch.setattr(waves, "read_utterance", lambda one, rate: (read.append(one.path), original(one, rate))[1])
    train(config(tmp_path / "run", voices, model="functionals", cache="none", workers=2))
    assert len(read) == len(set(read)) == 30


def test_interrupted_run_resumes_from_another_cache(voices, tmp_path):
    class Interrupt(Reporter):
        def on_epoch(self, row):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    whole = train(config(tmp_path / "whole", voices))
    some = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "cut", voices, cache="disk", **some), Interrupt())
    assert train(config(tmp_path / "cut", voices, cache="none", workers=1)) == whole


@pytest.mark.thorough
def test_cross_validation_in_processes_reads_once(voices, tmp_path, monkeypatch):
    """The parent makes the cache, also with skip_bad, and its processes read nothing else."""
    corpus = tmp_path / "corpus"
    for path in voices.rglob("*.*"):
        copy = corpus / path.relative_to(voices)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (corpus / "anger/s0/bad.wav").write_text("no audio")
    read, lines, original, outcomes = [], [], cache.read_utterance, cross_validation._outcomes
    monkeypatch.setattr(cache, "read_utterance", lambda one, rate: (read.append(one.name), original(one, rate))[1])

    def without_files(*given):
        for path in corpus.rglob("*.*"):
            path.unlink()
        return outcomes(*given)

    monkeypatch.setattr(cross_validation, "_outcomes", without_files)
    options = {"cache_dir": str(tmp_path / "cache"), "skip_bad": True, "epochs": 1, "test_speakers": ""}
    result = cross_validate(
        config(tmp_path / "cv", corpus, **options), MODELS["cgru"], Folds("speakers", 3, jobs=2), lines.append
    )
    assert len(result["runs"]) == 3 and len(result["skipped"]) == 1
    assert len(read) == len(set(read)) == 31
    assert any(line.endswith(f"on disk in {tmp_path}/cache, one copy for 2 processes") for line in lines)


def test_config_has_the_options_of_the_storage(tmp_path):
    made = TrainConfig(cache="disk", cache_dir="/x", workers=2).storage(3)
    assert (made.cache, made.folder, made.readers("disk"), made.processes) == ("disk", Path("/x"), 2, 3)
    with pytest.raises(ValueError, match="workers is -3; it must be at least 0, or -1"):
        TrainConfig(workers=-3)

"""The options of a run: what is refused, how speakers may be written, schedules."""

import json
import math
from pathlib import Path

import pytest

from ser_fast.training.config import TrainConfig, learning_rate, run_folder, run_options


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
        ({"loss": "ccc", "batch_size": 1}, "batch_size is 1; it must be at least 2 if loss is ccc"),
        ({"loss": "huber"}, "loss is huber; it must be one of auto, cross_entropy, l1, mse, ccc"),
        ({"targets": "arousal,,valence"}, "targets names ''; it must be a printable text without blanks around it"),
        ({"targets": ["arousal", "arousal"]}, "targets names 'arousal' twice; it must be there once"),
        ({"targets": "start"}, "targets names 'start'; it must be none of file, name, speaker"),
        (
            {"test_groups": "Ses01", "test_speakers": "03"},
            "test_groups is Ses01, but test_speakers are given; omit one",
        ),
        ({"test_data": "b.csv", "test_fold": "1"}, "test_data is b.csv, but test_fold are given; omit one of them"),
        (
            {"test_fold": "0"},
            "test_fold is '0'; it must be like 3/10, the third of ten folds, or 3, the third of the",
        ),
        (
            {"labels": {"angry": 1}},
            "labels maps 'angry' to 1; it must be texts; numbers need quotes, and null leaves",
        ),
        ({"test_fraction": -0.1}, "test_fraction is -0.1; it must be between 0 and 1, 1 excluded"),
        (
            {"test_fraction": 0.0, "test_speakers": "03"},
            "test_fraction is 0, but test_speakers is given; it must be above 0, or test_speakers omitted",
        ),
        ({"test_fraction": 0.0, "test_fold": "1/3"}, "test_fraction is 0, but test_fold is given"),
        ({"test_fraction": 0.0, "test_groups": "Ses01"}, "test_fraction is 0, but test_groups is given"),
        ({"test_fraction": 0.0, "test_data": "b.csv"}, "test_fraction is 0, but test_data is given"),
        (
            {"labels": {"angry": None}, "targets": "arousal,valence"},
            "labels is given, but targets, arousal, valence, have none; omit one of them",
        ),
        ({"augment": {"mixup": -1.0}}, "mixup is -1.0; it must be 0 or in"),
    ],
)
def test_config_refuses_bad_options(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize("given", ["03,08", " 08, 03,", ["03", "08"], ["08", "03", "08"]])
def test_config_reads_test_speakers_in_any_form(given):
    assert TrainConfig(test_speakers=given).held_out["test_speakers"] == ["03", "08"]
    assert TrainConfig(test_speakers=10).held_out["test_speakers"] == ["10"]
    assert TrainConfig().held_out["test_speakers"] == []


@pytest.mark.parametrize("given", ["valence,arousal", " valence , arousal", ["valence", "arousal"]])
def test_config_reads_targets_in_any_form(given):
    assert TrainConfig(targets=given).targets == ["valence", "arousal"], "their order is that of the outputs"
    assert TrainConfig().targets == TrainConfig(targets=[]).targets == []


def test_run_folder_of_an_older_version_has_no_targets(tmp_path):
    before = run_options(TrainConfig(out=tmp_path), {})
    del before["targets"]
    (tmp_path / "config.json").write_text(json.dumps(before, default=str))
    with run_folder(tmp_path, run_options(TrainConfig(out=tmp_path), {})):
        pass
    with pytest.raises(ValueError, match="which contains a run with different targets"):
        run_folder(tmp_path, run_options(TrainConfig(out=tmp_path, targets="arousal"), {})).__enter__()


def test_config_keeps_the_map_of_labels(tmp_path):
    """config.json then says what was merged, whatever becomes of the file."""
    (tmp_path / "map.yaml").write_text("angry: anger\ncalm: null\n")
    config = TrainConfig(labels=str(tmp_path / "map.yaml"))
    assert config.labels == {"angry": "anger", "calm": None} == TrainConfig(labels=config.labels).labels
    assert TrainConfig().labels == {}
    with pytest.raises(FileNotFoundError):
        TrainConfig(labels=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("given", ["Ses01,Ses02", ["Ses02", "Ses01"]])
def test_config_reads_test_groups_in_any_form(given):
    assert TrainConfig(test_groups=given).held_out["test_groups"] == ["Ses01", "Ses02"]


def test_cosine_schedule_rises_and_falls_to_zero():
    config = TrainConfig(schedule="cosine", learning_rate=2.0)
    rates = [learning_rate(config, step / 100) for step in range(101)]
    assert rates[0] < 0.1 and max(rates) == max(rates[3:8]) > 1.9 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[52] == pytest.approx(1 + math.cos(math.pi * 0.52))
    assert learning_rate(TrainConfig(learning_rate=2.0), 0.7) == 2.0

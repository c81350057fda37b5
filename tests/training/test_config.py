"""The options of a run: what is refused, how speakers may be written, schedules."""

import math
from pathlib import Path

import pytest

from ser_fast.training.config import TrainConfig, learning_rate


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
        ({"test_fraction": -0.1}, "test_fraction is -0.1; it must be between 0 and 1, 1 excluded"),
        (
            {"test_fraction": 0.0, "test_speakers": "03"},
            "test_fraction is 0, but test_speakers is given; it must be above 0, or test_speakers omitted",
        ),
        ({"test_fraction": 0.0, "test_fold": "1/3"}, "test_fraction is 0, but test_fold is given"),
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


def test_cosine_schedule_rises_and_falls_to_zero():
    config = TrainConfig(schedule="cosine", learning_rate=2.0)
    rates = [learning_rate(config, step / 100) for step in range(101)]
    assert rates[0] < 0.1 and max(rates) == max(rates[3:8]) > 1.9 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[52] == pytest.approx(1 + math.cos(math.pi * 0.52))
    assert learning_rate(TrainConfig(learning_rate=2.0), 0.7) == 2.0

"""Notebooks: summaries and scores are shown as HTML, progress as plain lines."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast.data.flags import FLAGS
from ser_fast.models import CGRU
from ser_fast.prediction.predictor import Predictor, Scores
from ser_fast.reports import evaluation, runs
from ser_fast.reports.html import Shown
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint
from ser_fast.training.config import TrainConfig
from ser_fast.training.evaluation import EvaluateConfig
from ser_fast.training.folds import Folds

TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}
HOSTILE = "<script>alert(1)</script>&\"'"


class Cells(HTMLParser):
    """The texts of each row of the tables of a part, and its other texts; no tag may be a script."""

    def __init__(self, part: str):
        super().__init__()
        self.rows, self.others, self.open = [], [], []
        self.feed(part)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in ("table", "thead", "tbody", "tr", "th", "td", "div", "p"), tag
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        (self.rows[-1] if "tr" in self.open else self.others).append(text)


def test_probabilities_are_shown_by_size():
    scores = Scores({"calm": 0.125, HOSTILE: 0.875, "a\x1bb": 0.0})
    scores.shares, scores.flag = True, "clipped short"
    shown = Cells(scores._repr_html_())
    assert shown.rows == [[HOSTILE, "87.5%"], ["calm", "12.5%"], ["a\\x1bb", "0.0%"]]
    assert shown.others == [f"{name}: {FLAGS[name]}" for name in ("clipped", "short")]
    assert "width: 87.5px" in scores._repr_html_()


def test_values_are_shown_in_their_order():
    shown = Cells(Scores({"valence": -0.25, "arousal": 123456.0})._repr_html_())
    assert shown.rows == [["valence", "-0.25"], ["arousal", "1.235e+05"]] and not shown.others


def test_scores_without_prediction_show_the_flag():
    scores = Scores()
    scores.flag = "silent"
    assert (
        Cells(scores._repr_html_()).others == [f"silent: {FLAGS['silent']}"] and "<table" not in scores._repr_html_()
    )


@pytest.mark.parametrize("classes", [["x", "y"], []])
def test_predictor_says_whether_scores_are_shares(tmp_path, classes):
    model = CGRU(len(classes) or 1, **TINY)
    save_checkpoint(tmp_path / "m.safetensors", Checkpoint("cgru", TINY, classes, model.state_dict()))
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    ((_, scores),) = Predictor(tmp_path / "m.safetensors", device="cpu").files([tmp_path / "a.wav"])
    assert scores.shares == bool(classes)
    assert ("%" in Cells(scores._repr_html_()).rows[0][1]) == bool(classes)


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> str:
    """Two classes, one with a hostile name, of two speakers."""
    root, draw = tmp_path_factory.mktemp("voices"), np.random.default_rng(0)
    lines = ["file,speaker,label"]
    for label in ("anger", "<b>sad&ness"):
        for number in range(8):
            name = f"{label[:2].strip('<')}{number}.wav"
            soundfile.write(root / name, draw.uniform(-0.5, 0.5, 4000 + 100 * number), 16000)
            lines.append(f"{name},s{number % 2},{label}")
    (root / "t.csv").write_text("\n".join(lines))
    return str(root / "t.csv")


def test_results_of_runs_are_shown_as_tables(voices, tmp_path, monkeypatch):
    """Training, evaluation and cross-validation return their summary.json."""
    for slow in ("learning", "utterances", "_pictures"):
        monkeypatch.setattr(runs, slow, lambda *_, **__: [])
    monkeypatch.setattr(runs, "draw", lambda *_: [])
    monkeypatch.setattr(evaluation, "utterances", lambda *_: [])
    monkeypatch.setattr(evaluation, "draw", lambda *_: [])
    options = {"data": voices, "model": "cgru", "epochs": 1, "validation": "none", "device": "cpu"}
    out = tmp_path / "<i>run"
    results = {
        out / "train": runs.train(TrainConfig(out=out / "train", test_speakers="s1", **options), TINY),
        out / "cv": runs.cross_validate(TrainConfig(out=out / "cv", **options), TINY, Folds()),
        out / "on": evaluation.evaluate(EvaluateConfig(out / "train", out=out / "on", device="cpu")),
    }
    for folder, result in results.items():
        assert isinstance(result, Shown) and result == json.loads((folder / "summary.json").read_text())
        shown = Cells(result._repr_html_())
        assert shown.others[-1] == f"report: {folder / 'report.html'}"
        assert any("accuracy %" in row for row in shown.rows) and any(
            "<b>sad&ness 8" in text for text in shown.others
        )
    measures = results[out / "train"]["best"]
    row = next(row for row in Cells(results[out / "train"]._repr_html_()).rows if row[0] == "best epoch")
    assert f"{100 * measures['recall']:.1f}" in row


def test_progress_in_a_notebook_is_plain_lines():
    """In a kernel standard output is no terminal, and each line through rich's display would be an output of its own."""
    script = """
import builtins
class ZMQInteractiveShell:
    pass
builtins.get_ipython = ZMQInteractiveShell
from ser_fast.reports.terminal import TrainingDisplay, print_table, say
row = {"epoch": 1, "loss": 0.5, "accuracy": 0.5, "utterances": 8, "seconds": 2.0}
with TrainingDisplay("cgru", 1) as display:
    for step in range(2000):
        display.on_batch(1, (step + 1) / 2000, 0.5, 0.5, 10.0)
    display.on_epoch(row)
say("[b]a line" + 200 * "-")
print_table("t", ["", "x"], [["a", "1"]])
assert not hasattr(say, "progress")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (Path(runs.__file__).parents[2], *sys.path)))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0].startswith("cgru epoch   1/1  loss 0.500") and lines[1] == "[b]a line" + 200 * "-"
    assert lines[2:] == ["t", "x", "a  1"] and "\x1b" not in done.stdout

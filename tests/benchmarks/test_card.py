"""The card of the model that comes with ser_fast, and how its checkpoint is taken from a run."""

import json
import re
import statistics
import sys

import pytest
import soundfile

from benchmarks import card
from ser_fast import pretrained
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.reports.runs import train
from ser_fast.training.checkpoint import load_checkpoint
from ser_fast.training.config import TrainConfig

pytestmark = pytest.mark.skipif(not card.RESULTS.is_dir(), reason="an sdist has no results")
OPTIONS = {"n_mels": 8, "n_cepstra": 4, "n_lags": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the recipe own but for epochs and size, on eight voices named as in Emo-DB, without a test."""
    root = tmp_path_factory.mktemp("card")
    (root / "emodb").mkdir()
    for index, speaker in enumerate(("03", "08")):
        for letter, emotion in {"W": "anger", "T": "sadness"}.items():
            for take, name in enumerate("ab"):
                voice = synthesize(emotion, index, take)[:16000].numpy()
                soundfile.write(root / "emodb" / f"{speaker}a01{letter}{name}.wav", voice, 16000)
    given = card.load_recipe("own")
    options = {"dropout": 0.5} | OPTIONS
    config = {name: value for name, value in given.items() if name != "functionals"} | {"epochs": 2}
    train(TrainConfig(data=str(root / "emodb"), out=root / "run", test_fraction=0, **config), options)
    return root / "run"


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["card", *map(str, arguments)])
    card.main()


def test_card_is_what_the_command_makes():
    assert pretrained.card().read_text(encoding="utf-8") == card.text(pretrained.path())


def test_card_numbers_are_those_of_the_results():
    recipe = load_checkpoint(pretrained.path()).progress["recipe"]
    loso, random = (card.read(card.RESULTS / f"{recipe}_{name}.json") for name in ("loso", "random"))
    shown = pretrained.card().read_text(encoding="utf-8")
    assert f"mean of the folds | {100 * loso['folds']['recall'][0]:.1f} |" in shown
    assert f"too high for a new speaker | {100 * random['folds']['recall'][0]:.1f} |" in shown
    for speaker in {run["fold"] for run in loso["runs"]}:
        mean = statistics.fmean(run["metrics"]["recall"] for run in loso["runs"] if run["fold"] == speaker)
        assert re.search(rf"\| {speaker} \| \d+ \| {100 * mean:.1f} \|", shown), speaker
    for name, entry in loso["pooled"]["per_class"].items():
        assert re.search(rf"\| {name} \| \d+ \| {100 * entry['recall']:.1f} \|", shown), name


def test_run_is_taken_without_its_paths(run):
    taken = card.taken(run, "own")
    changed = {f"functionals.{name}": value for name, value in OPTIONS.items()} | {"epochs": 2}
    assert taken.progress["changed"] == changed and taken.optimizer == {}
    assert (taken.progress["data"], taken.progress["utterances"]) == ("emodb", 8)
    assert str(run.parent) not in json.dumps(taken.progress)


def test_compare_tells_a_retraining_from_another_model(run, tmp_path, monkeypatch, capsys):
    card.save_checkpoint(tmp_path / "emodb.safetensors", card.taken(run, "own"))
    command(monkeypatch, f"--compare={run}", f"--folder={tmp_path}")
    assert capsys.readouterr().out == "same corpus, model and options; weights differ by at most 0.0e+00\n"
    other = card.taken(run, "own")
    other.progress["corpus"] = "another"
    card.save_checkpoint(tmp_path / "emodb.safetensors", other)
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, f"--compare={run}", f"--folder={tmp_path}")
    assert "corpus is " in capsys.readouterr().err
    other.weights["classifier.bias"] = (
        other.weights["classifier.bias"] + 2 * other.weights["classifier.bias"].abs().max()
    )
    assert card.distance(card.taken(run, "own"), other) == pytest.approx(2)


def test_card_refuses_runs_and_results_of_another_kind(run, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="run has the model functionals; it must be bigru_mha"):
        card.taken(run, "paper2_emodb")
    for name in ("best.safetensors", "config.json", "summary.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    summary = json.loads((run / "summary.json").read_text())
    summary["utterances"]["test"] = 3
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="which tested on 3 utterances; it must have test_fraction 0"):
        card.taken(tmp_path, "own")
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, f"--run={run}", "--recipe=own", f"--folder={tmp_path}")  # two classes, not seven
    assert "loso has the classes" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command(monkeypatch, f"--run={run}")
    assert "run and recipe: one is missing" in capsys.readouterr().err

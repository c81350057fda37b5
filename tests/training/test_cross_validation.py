"""Cross-validation: every fold is a run of its own, what they say together, and that an interruption loses nothing."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from ser_fast.data import pace, storage
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.reports import runs
from ser_fast.training import cross_validation
from ser_fast.training.checkpoint import load_checkpoint
from ser_fast.training.config import TrainConfig, run_folder
from ser_fast.training.cross_validation import cross_validate
from ser_fast.training.folds import Folds
from ser_fast.training.metrics import interval
from ser_fast.training.predictions import read_csv
from ser_fast.training.trainer import Trainer

EMOTIONS = ("anger", "sadness")
TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A manifest of 2 emotions by 3 speakers in 5 takes, with values beside it."""
    root = tmp_path_factory.mktemp("voices")
    classes, values = ["file,speaker,label"], ["file,speaker,value,sentiment_scale"]
    for number, emotion in enumerate(EMOTIONS):
        for speaker in range(3):
            for take in range(5):
                name = f"{emotion}_{speaker}_{take}.wav"
                soundfile.write(root / name, synthesize(emotion, speaker, take, 8000).numpy(), 8000)
                classes.append(f"{name},s{speaker},{emotion}")
                values.append(f"{name},s{speaker},{number - 0.1 * take},1")
    (root / "classes.csv").write_text("\n".join(classes) + "\n")
    (root / "values.csv").write_text("\n".join(values) + "\n")
    return root


def config(voices: Path, out: Path, **changes) -> TrainConfig:
    options = {
        "data": str(voices / "classes.csv"),
        "model": "cgru",
        "epochs": 1,
        "batch_size": 6,
        "valid_fraction": 0.2,
    }
    return TrainConfig(out=out, **(options | changes))


def test_cross_validation_pools_its_folds(voices, tmp_path):
    result = cross_validate(config(voices, tmp_path, seed=3), TINY, Folds("loso", seeds=2))
    assert result == json.loads((tmp_path / "summary.json").read_text())
    assert [(run["seed"], run["fold"]) for run in result["runs"]] == [(s, f"s{f}") for s in (3, 4) for f in range(3)]
    assert result["protocol"].startswith(
        "leave one speaker out, 3 speakers; best epoch chosen on 20% of the training sp"
    )
    truth, predicted = [], []
    for seed in (3, 4):
        for fold in (1, 2, 3):
            with open(tmp_path / f"seed{seed}" / f"fold{fold:02d}" / "predictions.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            assert {row["speaker"] for row in rows} == {f"s{fold - 1}"} and len(rows) == 10
            truth += [row["truth"] for row in rows]
            predicted += [row["predicted"] for row in rows]
    assert result["pooled"]["recall"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result["pooled"]["confusion"] == confusion_matrix(truth, predicted, labels=EMOTIONS).tolist()
    recalls = [run["metrics"]["recall"] for run in result["runs"]]
    assert result["folds"]["recall"] == pytest.approx([statistics.fmean(recalls), statistics.stdev(recalls)])
    means = [statistics.fmean(recalls[:3]), statistics.fmean(recalls[3:])]
    assert result["seeds"]["recall"] == pytest.approx([statistics.fmean(means), statistics.stdev(means)])


def test_cross_validation_resumes_at_the_lost_fold(voices, tmp_path, monkeypatch):
    whole = cross_validate(config(voices, tmp_path / "whole"), TINY, Folds("speakers", 3))
    trained = []
    run = Trainer.run

    def counted(self):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(self.config.out)
        return run(self)

    monkeypatch.setattr(Trainer, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config(voices, tmp_path / "parts"), TINY, Folds("speakers", 3))
    monkeypatch.setattr(Trainer, "run", run)
    calls = []
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self, old=Trainer._train_epoch: (calls.append(1), old(self)))
    parts = cross_validate(config(voices, tmp_path / "parts"), TINY, Folds("speakers", 3))
    assert len(calls) == 1
    assert [run["metrics"] for run in parts["runs"]] == [run["metrics"] for run in whole["runs"]]


def test_cross_validation_adds_seeds(voices, tmp_path, monkeypatch):
    one = cross_validate(config(voices, tmp_path), TINY, Folds("speakers", 2))
    calls = []
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self, old=Trainer._train_epoch: (calls.append(1), old(self)))
    two = cross_validate(config(voices, tmp_path), TINY, Folds("speakers", 2, seeds=2))
    assert len(calls) == 2 and [run["seed"] for run in two["runs"]] == [0, 0, 1, 1]
    assert [run["metrics"] for run in two["runs"][:2]] == [run["metrics"] for run in one["runs"]]
    with pytest.raises(ValueError, match="which contains a run with different seeds"):  # its summary would lose some
        cross_validate(config(voices, tmp_path), TINY, Folds("speakers", 2))


@pytest.mark.thorough
def test_cross_validation_with_jobs_gives_the_same(voices, tmp_path):
    # One thread in both, since the number of threads changes roundings.
    one = cross_validate(config(voices, tmp_path / "one"), TINY, Folds("random", 2))
    two = cross_validate(config(voices, tmp_path / "two"), TINY, Folds("random", 2, jobs=2))
    assert one["pooled"]["confusion"] == two["pooled"]["confusion"]
    for first, second in zip(one["runs"], two["runs"]):
        assert first["metrics"]["loss"] == pytest.approx(second["metrics"]["loss"], rel=1e-4)
    assert "2 random folds, speakers shared" in two["protocol"]


@pytest.mark.thorough
def test_killed_cross_validation_resumes(voices, tmp_path):
    options = {"data": voices / "classes.csv", "model": "cgru", "epochs": 10_000, "batch_size": 2, "protocol": "speakers",
               "folds": 2, "jobs": 2, "valid_fraction": 0.2, "out": tmp_path / "cv", "cgru.channels": "[2,2]"}  # fmt: skip
    command = [sys.executable, "-m", "ser_fast", "cv", *(f"--{name}={value}" for name, value in options.items())]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folds = [tmp_path / "cv" / "seed0" / f"fold0{number}" for number in (1, 2)]
    deadline = time.monotonic() + 100
    while not all((fold / "last.safetensors").exists() for fold in folds) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    for fold in folds:  # a fold's folder is locked as long as its process lives
        kept = json.loads((fold / "config.json").read_text())
        while time.monotonic() < deadline:
            with contextlib.suppress(ValueError), run_folder(fold, kept):
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"{fold} is still at work")


def test_cross_validation_chooses_on_training_folds(voices, tmp_path):
    # Nothing is learnt at such a rate, so wherever the other candidate learns, it is taken.
    candidates = [{"learning_rate": 1e-30}, {"learning_rate": 5e-3, "cgru.hidden_size": 6}]
    learning = config(voices, tmp_path, epochs=8, batch_size=3, validation="none")
    folds = Folds("loso", choose=candidates, inner_folds=2)
    result = cross_validate(learning, TINY, folds)
    assert "each takes the best of 2 candidates in 2 folds of its training part" in result["protocol"]
    for number, run in enumerate(result["runs"], 1):
        assert run["chosen"] == candidates[run["scores"].index(max(run["scores"]))]
        kept = json.loads((tmp_path / "seed0" / f"fold{number:02d}" / "config.json").read_text())
        assert kept["learning_rate"] == run["chosen"]["learning_rate"]
        assert kept["cgru"]["hidden_size"] == run["chosen"].get("cgru.hidden_size", 4)
        tested = []
        for table in sorted(
            (tmp_path / "seed0" / f"choice{number:02d}").glob("candidate*/seed0/fold*/predictions.csv")
        ):
            with open(table, newline="") as file:
                tested += [row["speaker"] for row in csv.DictReader(file)]
        # Both candidates are tested on every utterance of the other speakers, and never on the fold's own.
        assert sorted(tested) == sorted([f"s{s}" for s in range(3) if s != number - 1] * 2 * 10)
    assert any(run["chosen"] == candidates[1] for run in result["runs"])
    assert runs.cross_validate(learning, TINY, folds) == result
    _, rows = runs.choice_table(result, candidates)
    assert [row[0] for row in rows] == ["learning_rate: 1e-30", "learning_rate: 0.005; cgru.hidden_size: 6"]
    assert sum(row[2].count("seed 0, without s") for row in rows) == 3
    page = (tmp_path / "report.html").read_text()
    assert "What each fold chose" in page and all(cell in page for row in rows for cell in row)


@pytest.mark.parametrize(
    "name", ["learning_rat", "seed", "targets", "test_speakers", "bigru_mha.dropout", "cgru.num_classes"]
)
def test_cross_validation_refuses_unknown_candidates(name, voices, tmp_path):
    with pytest.raises(ValueError, match=rf"choose names '{name}'; it must name options of training"):
        cross_validate(config(voices, tmp_path / "new"), TINY, Folds(choose=[{name: 1}]))
    assert not (tmp_path / "new").exists()


def test_cross_validation_refuses_losses_of_values_before_it_trains(voices, tmp_path):
    with pytest.raises(ValueError, match="loss is mse, but data has classes, not values"):
        cross_validate(config(voices, tmp_path / "new"), TINY, Folds(choose=[{"loss": "l1"}, {"loss": "mse"}]))
    assert not (tmp_path / "new").exists()


def test_cross_validation_refuses_candidates_of_wrong_type(voices, tmp_path):
    with pytest.raises(
        ValueError, match=r"choose has {'learning_rate': 'fast'}; its values must be of their options'"
    ):
        cross_validate(config(voices, tmp_path / "new"), TINY, Folds(choose=[{"learning_rate": "fast"}]))


def test_results_have_the_model_and_the_utterances_of_each_fold(voices, tmp_path):
    """Also of finished folds, which are read from their tables."""
    choose = [{"cgru.hidden_size": 4}, {"cgru.hidden_size": 2}]
    given = config(voices, tmp_path), TINY, Folds("loso", choose=choose, inner_folds=2)
    first, again = cross_validation.results(*given), cross_validation.results(*given)
    assert first.summary == again.summary and first.sample_rate == again.sample_rate == 16000
    for found in (first, again):
        assert [part.name for part in found.tested] == [f"seed 0, without s{i}" for i in range(3)]
        assert sorted(i for part in found.tested for i in part.index) == list(range(30))
        for number, part in enumerate(found.tested):
            assert part.checkpoint == tmp_path / "seed0" / f"fold0{number + 1}" / "best.safetensors"
            assert [row.name for row in part.predictions] == [found.dataset.names[i] for i in part.index]
            assert {found.corpus.utterances[i].speaker for i in part.index} == {f"s{number}"}
            chosen = found.summary["runs"][number]["chosen"]["cgru.hidden_size"]
            assert load_checkpoint(part.checkpoint).options["hidden_size"] == chosen


def test_cross_validation_of_values(voices, tmp_path):
    valued = config(voices, tmp_path, data=str(voices / "values.csv"), validation="none")
    result = runs.cross_validate(valued, TINY, Folds("speakers", 2))
    assert cross_validate(valued, TINY, Folds("speakers", 2)) == result, "read back from the folds' tables"
    assert {"mae", "corr", "acc2", "acc5"} <= result["folds"].keys() and result["classes"] == []
    assert "Pearson r" in (tmp_path / "report.html").read_text()


def test_cross_validation_refuses_other_options(voices, tmp_path):
    cross_validate(config(voices, tmp_path), TINY, Folds("speakers", 2))
    with pytest.raises(ValueError, match="which contains a run with different protocol"):
        cross_validate(config(voices, tmp_path), TINY, Folds("random", 2))
    with pytest.raises(ValueError, match="test_speakers is given, which the protocol sets; omit it"):
        cross_validate(config(voices, tmp_path / "new", test_speakers="s0"), TINY, Folds())
    with pytest.raises(ValueError, match="it must leave 2 or more, one of each class"):
        cross_validate(config(voices, tmp_path / "new", valid_fraction=0.01, validation="random"), TINY, Folds())
    assert not (tmp_path / "new").exists()


def test_cross_validation_refuses_another_corpus(voices, tmp_path):
    cross_validate(config(voices, tmp_path / "cv"), TINY, Folds("speakers", 2))
    table = (voices / "classes.csv").read_text().replace("anger_0_0.wav,s0,anger", "anger_0_0.wav,s0,sadness")
    other = voices / "other.csv"
    other.write_text(table)
    with pytest.raises(ValueError, match="whose corpus differs from the one that the run in"):
        cross_validate(config(voices, tmp_path / "cv", data=str(other)), TINY, Folds("speakers", 2))


def test_cross_validation_seeds_share_folds(voices, tmp_path):
    table = (voices / "classes.csv").read_text().replace(",s1,", ',"Doe, J",')
    (voices / "commas.csv").write_text(table)
    there = ["Doe, J", "s0", "s2"]
    for folds in (Folds("speakers", 2, seeds=3), Folds("random", 2, seeds=3)):
        runs, _ = cross_validation.plan(config(voices, tmp_path, seed=5), folds, there)
        held_out = [(run.config.test_speakers, run.config.test_fold) for run in runs]
        assert held_out[:2] == held_out[2:4] == held_out[4:] and len({run.seed for run in runs}) == 3
    result = cross_validate(config(voices, tmp_path, data=str(voices / "commas.csv")), TINY, Folds("loso"))
    assert [run["fold"] for run in result["runs"]] == there


def test_cross_validation_leaves_out_unreadable_speakers(voices, tmp_path):
    rows = (voices / "classes.csv").read_text().splitlines()
    rows = [rows[0], *(f"{voices}/{row}" for row in rows[1:]), "absent.wav,s9,anger"]
    (tmp_path / "some.csv").write_text("\n".join(rows) + "\n")
    result = cross_validate(
        config(voices, tmp_path / "cv", data=str(tmp_path / "some.csv"), skip_bad=True), TINY, Folds("loso")
    )
    assert [run["fold"] for run in result["runs"]] == ["s0", "s1", "s2"] and len(result["skipped"]) == 1


def test_cross_validation_refuses_too_few_inner_speakers(voices, tmp_path):
    folds = Folds("loso", choose=[{"clip": 1.0}], inner_folds=3)
    with pytest.raises(ValueError, match="protocol is speakers in 3 folds, but data has 2 speakers"):
        cross_validate(config(voices, tmp_path / "cv"), TINY, folds)
    assert not (tmp_path / "cv").exists()


def test_cross_validation_deviation_needs_two_values():
    assert cross_validation.mean_and_deviation([0.5]) == [0.5, None]


@pytest.fixture(scope="module")
def finished(voices, tmp_path_factory) -> Path:
    """A finished cross-validation of two folds."""
    out = tmp_path_factory.mktemp("finished")
    cross_validate(config(voices, out), TINY, Folds("speakers", 2))
    return out


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("predictions.csv", lambda text: text.replace("name,", "file,", 1), "column 'name' is missing"),
        ("predictions.csv", lambda text: "", "column 'name' is missing"),
        (
            "predictions.csv",
            lambda text: "name,speaker,truth,predicted\na,s0,anger,anger\nb,s0,anger,nope\n",
            "predicted of row 2 is 'nope', which must be one of anger, sadness",
        ),
        (
            "predictions.csv",
            lambda text: "name,speaker,truth,predicted\na,s0,anger\n",
            "predicted of row 1 is '', which must be one of anger, sadness",
        ),
        ("predictions.csv", lambda text: text.replace(",p_sadness", ",p_sad", 1), "column 'p_sadness' is missing"),
        (
            "predictions.csv",
            lambda text: "name,speaker,truth,predicted,p_anger,p_sadness\na,s0,anger,anger,0.7,nan\n",
            "p_sadness of row 1 is 'nan', which must be in 0..1",
        ),
        ("summary.json", lambda text: text[: len(text) // 2], "it is not readable JSON"),
        ("summary.json", lambda text: "[]", "it is not the summary of a run"),
    ],
)
def test_cross_validation_names_a_damaged_file(voices, finished, tmp_path, name, change, fault):
    out = shutil.copytree(finished, tmp_path / "cv")
    path = out / "seed0" / "fold01" / name
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError) as raised:
        cross_validate(config(voices, out), TINY, Folds("speakers", 2))
    said = str(raised.value)
    assert said.startswith(f"{path}: {fault}") and said.endswith(f"; remove {path.parent} to run this fold again")


def test_predictions_of_values_must_be_numbers(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("name,speaker,truth,predicted\na,s0,0.5,-1e-3\n")
    assert read_csv(path, []) == [("a", "s0", "0.5", "-1e-3", ())]
    path.write_text("name,speaker,truth,predicted\na,s0,half,0.5\n")
    with pytest.raises(ValueError, match="truth of row 1 is 'half', which must be a number; remove"):
        read_csv(path, [])


def test_cross_validation_reads_utterances_once(voices, tmp_path, monkeypatch):
    """With skip_bad the folds depend on what can be read; the same copy is trained on."""
    (voices / "bad.wav").write_text("no audio")
    table = (voices / "classes.csv").read_text() + "bad.wav,s0,anger\n"
    (voices / "some.csv").write_text(table)
    read, lines = [], []
    original = storage.read_utterance
    monkeypatch.setattr(
        storage, "read_utterance", lambda one, *given: (read.append(one.name), original(one, *given))[1]
    )
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    skipping = config(voices, tmp_path, data=str(voices / "some.csv"), skip_bad=True)
    result = cross_validate(skipping, TINY, Folds("speakers", 2), lines.append)
    assert len(read) == len(set(read)) == 31
    assert len(result["skipped"]) == 1 and "bad.wav" in result["skipped"][0]
    for folder in (tmp_path, tmp_path / "seed0" / "fold02"):
        assert (folder / "unreadable.txt").read_text() == f"{result['skipped'][0]}\n"
    for fold in ("fold01", "fold02"):
        assert json.loads((tmp_path / "seed0" / fold / "summary.json").read_text())["skipped"] == result["skipped"]
    assert any(re.fullmatch(r"read \d+ of 31 utterances", line) for line in lines)
    assert any(re.fullmatch(rf"{tmp_path}/seed0/fold01: epoch 1 of 1, loss \d.\d+", line) for line in lines)


SCRIPT = """
from pathlib import Path
from ser_fast.training.config import TrainConfig
from ser_fast.training.cross_validation import cross_validate
from ser_fast.training.folds import Folds

config = TrainConfig(data={data!r}, model="cgru", epochs=1, out=Path({out!r}), validation="none")
{guard}
    print(len(cross_validate(config, {options!r}, Folds("speakers", 2, jobs=2))["runs"]), "runs")
"""


def test_cross_validation_in_a_script_names_the_main_guard(voices, tmp_path):
    found = {}
    for guard in ("if True:", 'if __name__ == "__main__":'):
        out = tmp_path / str(len(found))
        script = SCRIPT.format(data=str(voices / "classes.csv"), out=str(out), guard=guard, options=TINY)
        (tmp_path / "script.py").write_text(script)
        found[guard] = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    bare, guarded = found.values()
    last = 'jobs is 2, but its processes import the script that calls it, which must do so below `if __name__ == "__main__":`'
    assert bare.returncode == 1 and bare.stderr.splitlines()[-1] == f"RuntimeError: {last}"
    assert "another process" not in bare.stderr and bare.stderr.count("Traceback") == 2  # the pool's error and ours
    assert (guarded.returncode, guarded.stdout) == (0, "2 runs\n"), guarded.stderr


@pytest.fixture(scope="module")
def grouped(voices) -> str:
    """The manifest of voices with s0 and s1 in one group and s2 in another, and a class that only s2 has."""
    rows = (voices / "classes.csv").read_text().splitlines()
    groups = [f"{row},{'two' if ',s2,' in row else 'one'}" for row in rows[1:]]
    groups = [row.replace(",anger,", ",fear,") if "_2_4" in row else row for row in groups]
    (voices / "groups.csv").write_text("\n".join([f"{rows[0]},group", *groups]) + "\n")
    return str(voices / "groups.csv")


def test_cross_validation_leaves_groups_out(voices, grouped, tmp_path):
    dropped = config(voices, tmp_path, data=grouped, labels={"fear": None}, validation="none")
    result = cross_validate(dropped, TINY, Folds("logo"))
    assert result["protocol"] == "leave one group out, 2 groups, no speakers shared; weights of the last epoch"
    assert [run["fold"] for run in result["runs"]] == ["one", "two"] and result["labels"] == {"fear": None}
    kept = json.loads((tmp_path / "seed0" / "fold02" / "config.json").read_text())
    assert (kept["test_groups"], kept["labels"]) == (["two"], {"fear": None})
    with open(tmp_path / "seed0" / "fold01" / "predictions.csv", newline="") as file:
        assert {row["speaker"] for row in csv.DictReader(file)} == {"s0", "s1"}
    with pytest.raises(ValueError, match="protocol is logo, but data has no column 'group'"):
        cross_validate(config(voices, tmp_path / "new"), TINY, Folds("logo"))
    assert not (tmp_path / "new").exists()


def test_cross_validation_goes_on_without_a_class(voices, grouped, tmp_path):
    """Without permission the error names the speaker, before anything is written."""
    lacking = config(voices, tmp_path / "cv", data=grouped, validation="none")
    with pytest.raises(
        ValueError, match=r"no training utterance of \['fear'\]; .* but speaker s2 has all utterances of"
    ):
        cross_validate(lacking, TINY, Folds("loso"))
    assert not (tmp_path / "cv").exists()
    result = runs.cross_validate(replace(lacking, allow_missing_classes=True), TINY, Folds("loso"))
    said = "; without s2 no training utterance of fear (speaker s2 has all utterances of fear)"
    assert result["protocol"].endswith(said) and result["missing_classes"] == {"s2": {"fear": ["s2"]}}
    assert result["classes"] == ["anger", "fear", "sadness"]
    fold = json.loads((tmp_path / "cv" / "seed0" / "fold03" / "summary.json").read_text())
    assert fold["missing_classes"] == {"fear": ["s2"]} and fold["best"]["per_class"]["fear"]["support"] == 1
    assert "no training utterance of fear (speaker s2 has all" in fold["protocol"]
    # UA is over the classes of the test part: the first fold has two.
    first = json.loads((tmp_path / "cv" / "seed0" / "fold01" / "summary.json").read_text())["best"]
    recalls = [first["per_class"][name]["recall"] for name in EMOTIONS]
    assert first["recall"] == pytest.approx(statistics.fmean(recalls))
    assert said in (tmp_path / "cv" / "report.html").read_text()


def test_cross_validation_intervals_over_speakers(voices, tmp_path):
    """Each speaker counts with the mean of the seeds; two folds, one of two speakers."""
    options = config(voices, tmp_path, epochs=4, learning_rate=2e-2, validation="none")
    result = cross_validate(options, TINY, Folds("speakers", 2, seeds=2))
    uas: dict[str, list[float]] = {}
    for seed in (0, 1):
        pairs: dict[str, list] = {}
        for table in sorted((tmp_path / f"seed{seed}").glob("fold*/predictions.csv")):
            for row in read_csv(table, list(EMOTIONS)):
                pairs.setdefault(row.speaker, []).append((row.truth, row.predicted))
        for name, own in pairs.items():
            uas.setdefault(name, []).append(balanced_accuracy_score(*zip(*own)))
    means = {name: statistics.fmean(values) for name, values in sorted(uas.items())}
    assert len({tuple(values) for values in uas.values()}) > 1, "the speakers and seeds should differ"
    assert {name: own["recall"] for name, own in result["per_speaker"].items()} == pytest.approx(means)
    assert {own["utterances"] for own in result["per_speaker"].values()} == {10}
    assert result["intervals"]["recall"]["speakers"] == pytest.approx(interval(list(means.values()), 0.0, 1.0))
    spread = result["intervals"]["recall"]["pooled"]
    assert spread["value"] == result["pooled"]["recall"] and spread["low"] <= spread["value"] <= spread["high"]


def test_cross_validation_runs_the_folds_of_emobox(voices, tmp_path):
    """Three seeds of each fold; the first has a validation part of its own."""
    meta = tmp_path / "data" / "tiny"
    rows = [row.split(",") for row in (voices / "classes.csv").read_text().splitlines()[1:]]
    listed = [{"key": name, "wav": f"downloads/{voices.name}/{name}", "emo": label} for name, _, label in rows]
    (tmp_path / "downloads").symlink_to(voices.parent)
    parts = [["train", "valid", "test"][int(name.split("_")[1])] for name, *_ in rows]
    for number, named in enumerate((parts, ["train" if part == "valid" else part for part in parts]), 1):
        (meta / f"fold_{number}").mkdir(parents=True)
        for part in set(named):
            own = [json.dumps(one) for one, of in zip(listed, named) if of == part]
            (meta / f"fold_{number}" / f"tiny_{part}_fold_{number}.jsonl").write_text("\n".join(own))
    (meta / "tiny.jsonl").write_text("\n".join(map(json.dumps, listed)))
    result = cross_validate(config(voices, tmp_path / "cv", data=f"emobox:{meta}"), TINY, Folds("parts", seeds=3))
    assert [(run["seed"], run["fold"]) for run in result["runs"]] == [
        (s, f"fold {f}") for s in range(3) for f in (1, 2)
    ]
    assert result["protocol"].startswith("the corpus's own 2 folds, speakers unknown; ") and result["data"] == "tiny"
    found = [json.loads((tmp_path / f"cv/seed2/fold0{number}/summary.json").read_text()) for number in (1, 2)]
    assert found[0]["utterances"] == {"train": 10, "valid": 10, "test": 10}
    assert (
        found[0]["protocol"]
        == "fold 1 of the corpus's own 2, speakers unknown; best epoch chosen on its validation part"
    )
    assert found[1]["utterances"] == {"train": 16, "valid": 4, "test": 10}

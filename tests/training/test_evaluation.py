"""Evaluation of a saved model: the run's own parts, other corpora with mapped labels, and values."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.dataset import load_dataset
from ser_fast.training import evaluation
from ser_fast.training.checkpoint import CheckpointError
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.corpus import corpus_of
from ser_fast.training.evaluation import EvaluateConfig, evaluate
from ser_fast.training.trainer import Trainer

EMOTIONS = ("anger", "fear", "sadness")
OPTIONS = {
    "cgru": {"channels": (2, 2), "hidden_size": 4, "hop_length": 640},
    "functionals": {"groups": ["rhythm"]},
}


def train(data: Path | str, out: Path, model: str = "cgru", **more) -> Path:
    """Train one epoch without the speaker s2; return the run folder."""
    options = {"test_speakers": "s2", "epochs": 1, "batch_size": 8, "learning_rate": 5e-3}
    config = TrainConfig(str(data), out, model, **options, **more)
    dataset = load_dataset(corpus_of(config), 16000)
    with run_folder(out, run_options(config, OPTIONS[model])) as folder:
        Trainer(config, OPTIONS[model], dataset, dataset.split(**config.held_out), folder).run()
    return out


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """Manifests of 3 emotions by 3 speakers in 4 takes: classes, other labels for them, and values."""
    root = tmp_path_factory.mktemp("voices")
    tables = {"classes": ["file,speaker,label"], "other": ["file,speaker,label"], "values": ["file,speaker,value"]}
    named = {"anger": "angry", "fear": "scared", "sadness": "sad"}
    for number, emotion in enumerate(EMOTIONS):
        for speaker in range(3):
            for take in range(4):
                name = f"{emotion}_{speaker}_{take}.wav"
                soundfile.write(root / name, synthesize(emotion, speaker, take, 8000).numpy(), 8000)
                label = "calm" if emotion == "sadness" and take == 3 else named[emotion]
                tables["classes"].append(f"{name},s{speaker},{emotion}")
                tables["other"].append(f"{name},s{speaker},{label}")
                tables["values"].append(f"{name},s{speaker},{number - 0.1 * take}")
    for name, lines in tables.items():
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def run(voices, tmp_path_factory) -> Path:
    return train(voices / "classes.csv", tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def unread(monkeypatch):
    """Let a test fail that reads audio."""
    monkeypatch.setattr(evaluation, "read_inputs", lambda *_: pytest.fail("audio was read"))


def rows(folder: Path) -> list[dict]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def labels_file(folder: Path, **names: str) -> str:
    path = folder / "map.yaml"
    path.write_text("".join(f"{label}: {name}\n" for label, name in names.items()))
    return str(path)


@pytest.mark.parametrize("model", OPTIONS)
def test_evaluate_repeats_the_test_of_a_run(model, run, voices, tmp_path):
    folder = run if model == "cgru" else train(voices / "classes.csv", tmp_path / "run", model)
    result = evaluate(EvaluateConfig(str(folder), part="test", batch_size=8, out=tmp_path / "out"))
    summary = json.loads((folder / "summary.json").read_text())
    assert result["metrics"] == {key: value for key, value in summary["best"].items() if key != "loss"}
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    assert result == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (result["utterances"], result["corpus"], result["notice"]) == (12, summary["corpus"], "")
    wanted = (
        f"{model} of {folder}/best.safetensors (trained on classes) on classes: 12 of 36 utterances of 1 speaker; "
    )
    assert result["protocol"] == f"{wanted}test part of the run ({summary['protocol']})"
    assert result["intervals"]["recall"]["pooled"] == {
        "value": result["metrics"]["recall"],
        "low": None,
        "high": None,
    }


def test_evaluate_counts_training_utterances(run, tmp_path):
    result = evaluate(EvaluateConfig(str(run), out=tmp_path))
    assert result["notice"] == "24 of the 36 utterances are of the run's training or validation part"
    own = evaluate(EvaluateConfig(str(run), test_speakers="s2", out=tmp_path / "own"))
    assert (
        own["notice"] == ""
        and own["metrics"]["confusion"] == json.loads((run / "summary.json").read_text())["best"]["confusion"]
    )


def test_evaluate_warns_with_a_checkpoint_alone(run, voices, tmp_path):
    shutil.copy(run / "best.safetensors", tmp_path / "model.safetensors")
    config = EvaluateConfig(str(tmp_path / "model.safetensors"), str(voices / "classes.csv"), out=tmp_path / "out")
    assert evaluate(config)["notice"].startswith(
        "the model was trained on this corpus, so its training utterances may"
    )


def test_evaluate_measures_another_corpus(run, voices, tmp_path):
    labels = labels_file(tmp_path, angry="anger", scared="anger", sad="sadness", calm="null")
    config = EvaluateConfig(str(run), str(voices / "other.csv"), labels, out=tmp_path / "out")
    result = evaluate(config)
    table = rows(tmp_path / "out")
    truth, predicted = [row["truth"] for row in table], [row["predicted"] for row in table]
    assert [truth.count(name) for name in EMOTIONS] == [24, 0, 9]
    for row in table:
        assert row["predicted"] == max(EMOTIONS, key=lambda name: float(row[f"p_{name}"]))
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    hits = [
        sum(t == p == name for t, p in zip(truth, predicted)) / truth.count(name) for name in ("anger", "sadness")
    ]
    assert result["metrics"]["recall"] == pytest.approx(sum(hits) / 2)
    for speaker, found in result["per_speaker"].items():
        own = [(row["truth"], row["predicted"]) for row in table if row["speaker"] == speaker]
        assert found["utterances"] == len(own) == 11
        assert found["accuracy"] == pytest.approx(accuracy_score(*zip(*own)))
    for phrase in ("33 of 36 utterances of 3 speakers", "counted angry as anger, sad as sadness, scared as anger",
                   "left out calm (3)", "; no utterance of fear"):  # fmt: skip
        assert phrase in result["protocol"]
    assert result["labels"] == {"angry": "anger", "scared": "anger", "sad": "sadness", "calm": None}
    assert evaluate(config) == result


def test_evaluate_decides_among_known_classes_only(run, voices, tmp_path):
    labels = labels_file(tmp_path, angry="anger", scared="null", sad="sadness", calm="sadness")
    data = str(voices / "other.csv")
    every, known = (
        evaluate(EvaluateConfig(str(run), data, labels, only, out=tmp_path / str(only))) for only in (False, True)
    )
    for row, other in zip(rows(tmp_path / "False"), rows(tmp_path / "True"), strict=True):
        p, q = ({name: float(given[f"p_{name}"]) for name in EMOTIONS} for given in (row, other))
        assert q["fear"] == 0 and other["predicted"] == max(("anger", "sadness"), key=p.__getitem__)
        assert q["anger"] == pytest.approx(p["anger"] / (p["anger"] + p["sadness"]), rel=1e-4)
    assert "excluded from the decision: no utterance of fear" in known["protocol"]
    assert "excluded" not in every["protocol"]


def test_evaluate_takes_the_parts_of_another_corpus(run, voices, tmp_path):
    lines = (voices / "classes.csv").read_text().splitlines()[1:-1]  # the run's own corpus has the run's parts
    named = [f"{line},{'test' if ',s0,' in line else 'train'}" for line in lines]
    (voices / "parts.csv").write_text("\n".join(["file,speaker,label,part", *named]) + "\n")
    result = evaluate(EvaluateConfig(str(run), str(voices / "parts.csv"), part="test", out=tmp_path))
    assert result["utterances"] == 12 and {row["speaker"] for row in rows(tmp_path)} == {"s0"}


def test_evaluate_refuses_a_part_of_neither(run, voices, tmp_path):
    """Only the digest tells that this corpus is not that of the run, so it is read first."""
    (voices / "fewer.csv").write_text("\n".join((voices / "classes.csv").read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="part is test, but fewer is not the corpus of the run and has no parts"):
        evaluate(EvaluateConfig(str(run), str(voices / "fewer.csv"), part="test", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_evaluate_skips_bad_files(run, voices, tmp_path):
    (voices / "text.wav").write_text("no audio")
    (voices / "bad.csv").write_text((voices / "classes.csv").read_text() + "text.wav,s0,anger\n")
    config = {"checkpoint": str(run), "data": str(voices / "bad.csv"), "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="1 of 37 utterances cannot be read"):
        evaluate(EvaluateConfig(**config))
    assert not (tmp_path / "out").exists()
    said = []
    result = evaluate(EvaluateConfig(**config, skip_bad=True), said.append)
    assert result["utterances"] == 36 and any(line.startswith("skipped: ") for line in said)
    assert (tmp_path / "out" / "unreadable.txt").read_text().splitlines() == result["skipped"]


def test_evaluate_measures_values(voices, tmp_path):
    folder = train(voices / "values.csv", tmp_path / "run")
    result = evaluate(EvaluateConfig(str(folder), part="test", batch_size=8, out=tmp_path / "test"))
    summary = json.loads((folder / "summary.json").read_text())
    assert result["metrics"] == {name: summary["best"][name] for name in ("ccc", "mae", "corr")}
    result = evaluate(EvaluateConfig(str(folder), out=tmp_path / "all"))
    errors = {name: [] for name in ("s0", "s1", "s2")}
    for row in rows(tmp_path / "all"):
        assert set(row) == {"name", "speaker", "truth", "predicted"}
        errors[row["speaker"]].append(abs(float(row["truth"]) - float(row["predicted"])))
    for name, own in errors.items():
        found = result["per_speaker"][name]
        assert found.keys() == {"utterances", "ccc", "mae", "corr"} and found["utterances"] == 12
        assert found["mae"] == pytest.approx(sum(own) / 12, abs=1e-5)
    interval = result["intervals"]["mae"]["pooled"]
    assert interval["low"] <= interval["value"] == result["metrics"]["mae"] <= interval["high"]


def test_evaluate_reads_the_target_value_beside_labels(voices, tmp_path):
    header, *lines = (voices / "values.csv").read_text().splitlines()
    both = voices / "both.csv"
    both.write_text("\n".join([f"{header},label", *(f"{line},x" for line in lines)]) + "\n")
    folder = train(both, tmp_path / "run", targets="value")
    assert evaluate(EvaluateConfig(str(folder), part="test", out=tmp_path / "out"))["metrics"]["mae"] > 0


def test_evaluate_warns_of_another_corpus_of_that_name(run, voices, tmp_path):
    header, *lines = (voices / "classes.csv").read_text().splitlines()
    (tmp_path / "classes.csv").write_text("\n".join([header, *(f"{voices}/{line}" for line in lines[1:])]) + "\n")
    result = evaluate(EvaluateConfig(str(run), str(tmp_path / "classes.csv"), out=tmp_path / "out"))
    assert result["notice"].startswith("the model was trained on a corpus of this name, so its training utterances")


BAD = {
    "unmapped": ({"data": "other.csv"}, "data has the labels angry, calm, sad, scared, but the model has the classes anger, fear, sadness; --labels"),
    "unknown class": ({"labels": {"anger": "rage"}}, "labels maps 'anger' to 'rage'; it must be a class of the model, anger, fear, sadness, or null"),
    "unknown label": ({"labels": {"angry": "anger"}}, "labels maps 'angry'; it must be a label of the corpus: anger, fear, sadness"),
    "nothing left": ({"labels": {"anger": "null", "fear": "null", "sadness": "null"}}, "labels leave no utterance"),
    "speaker": ({"test_speakers": "s9"}, r"test_speakers names \['s9'\]; it must be among \['s0', 's1', 's2'\]"),
    "values": ({"data": "values.csv"}, "data is values, which has values; it must have classes, as the model predicts"),
    "corpus": ({"data": "nowhere"}, "nowhere"),
}  # fmt: skip


def test_evaluate_reads_from_disk_alike(run, tmp_path):
    memory = evaluate(EvaluateConfig(str(run), part="test", cache="memory", out=tmp_path / "memory"))
    options = {"cache": "disk", "cache_dir": str(tmp_path / "caches"), "workers": 0}
    assert evaluate(EvaluateConfig(str(run), part="test", **options, out=tmp_path / "disk")) == memory
    assert any((tmp_path / "caches").iterdir())


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("case", BAD)
def test_evaluate_refuses_before_it_reads(case, run, voices, tmp_path):
    changes, message = BAD[case]
    options = {"data": "classes.csv"} | changes
    if "labels" in options:
        options["labels"] = labels_file(tmp_path, **options["labels"])
    options["data"] = str(voices / options["data"])
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(EvaluateConfig(str(run), out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unread")
def test_evaluate_needs_the_folder_of_a_run(run, voices, tmp_path):
    shutil.copy(run / "best.safetensors", tmp_path / "model.safetensors")
    alone, data = str(tmp_path / "model.safetensors"), str(voices / "classes.csv")
    with pytest.raises(ValueError, match=r"data is not given, and \S+ does not lie in the folder of a run"):
        evaluate(EvaluateConfig(alone, out=tmp_path / "out"))
    with pytest.raises(ValueError, match=r"part is test, but classes has no parts of its own, and .* it must be all"):
        evaluate(EvaluateConfig(alone, data, part="test", out=tmp_path / "out"))
    with pytest.raises(CheckpointError, match="is no run folder itself; it holds"):
        evaluate(EvaluateConfig(str(run.parent), out=tmp_path / "out"))


@pytest.mark.usefixtures("unread")
def test_evaluate_keeps_other_results(run, voices, tmp_path):
    (tmp_path / "config.json").write_text('{"checkpoint": "other", "only_known": false, "batch_size": 3}')
    with pytest.raises(
        ValueError, match=r"which contains a run with different .*checkpoint.*; it must be a new folder"
    ):
        evaluate(EvaluateConfig(str(run), out=tmp_path))
    with pytest.raises(ValueError, match=r"config.json is not of such a run"):
        evaluate(EvaluateConfig(str(run), out=run))


def test_evaluate_of_a_run_of_an_older_version(tmp_path):
    """Its best checkpoint does not name the corpus; its summary does."""
    old = Path(__file__).parent / "old_runs" / "cgru"
    result = evaluate(EvaluateConfig(str(old), part="test", batch_size=64, out=tmp_path))
    best = json.loads((old / "summary.json").read_text())["best"]
    moved = sum(
        abs(a - b)
        for row, other in zip(result["metrics"]["confusion"], best["confusion"])
        for a, b in zip(row, other)
    )
    assert moved <= 2  # one utterance near a boundary
    assert "(trained on synthetic) on synthetic: 96 of 480" in result["protocol"] and result["notice"] == ""
    assert torch.tensor(result["metrics"]["confusion"]).sum() == 96


def test_evaluate_equals_scikit_learn_where_all_classes_occur(run, tmp_path):
    result = evaluate(EvaluateConfig(str(run), out=tmp_path))
    pairs = [(row["truth"], row["predicted"]) for row in rows(tmp_path)]
    assert result["metrics"]["recall"] == pytest.approx(balanced_accuracy_score(*zip(*pairs)))

"""The corpus of a run: mapped labels, and training on one corpus with the test on another."""

import json
import re
from pathlib import Path

import pytest
import soundfile

from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.reports import runs
from ser_fast.training.config import TrainConfig
from ser_fast.training.corpus import corpus_of
from ser_fast.training.evaluation import EvaluateConfig, evaluate

TINY = {"channels": (2, 2), "hidden_size": 4, "hop_length": 640}
MAP = {"angry": "anger", "sad": "sadness", "fear": None, "calm": None}


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """Manifests a and b of 3 emotions by 3 speakers in 3 takes, with other files and labels, and a map of both."""
    root = tmp_path_factory.mktemp("voices")
    for corpus, names in (("a", ("anger", "sadness", "fear")), ("b", ("angry", "sad", "calm"))):
        lines = ["file,speaker,label"]
        for emotion, label in zip(("anger", "sadness", "fear"), names):
            for speaker in range(3):
                for take in range(3):
                    name = f"{corpus}_{emotion}_{speaker}_{take}.wav"
                    wave = synthesize(emotion, speaker, take + 3 * (corpus == "b"), 8000)
                    soundfile.write(root / name, wave.numpy(), 8000)
                    lines.append(f"{name},s{speaker},{label}")
        (root / f"{corpus}.csv").write_text("\n".join(lines) + "\n")
    text = "".join(f"{label}: {name or 'null'}\n" for label, name in MAP.items())
    (root / "map.yaml").write_text(text)
    return root


def config(voices: Path, out: Path, **changes) -> TrainConfig:
    options = {"model": "cgru", "epochs": 1, "batch_size": 6, "valid_fraction": 0.3, "learning_rate": 5e-3}
    files = {"data": str(voices / "a.csv"), "test_data": str(voices / "b.csv"), "labels": str(voices / "map.yaml")}
    return TrainConfig(out=out, **(files | options | changes))


@pytest.fixture(scope="module")
def run(voices, tmp_path_factory) -> Path:
    """A run on a, tested on b."""
    out = tmp_path_factory.mktemp("runs") / "ab"
    runs.train(config(voices, out), TINY)
    return out


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def confusion(metrics: dict) -> list:
    return metrics["confusion"]


def test_run_tests_on_another_corpus(run, voices, tmp_path):
    """The same numbers as by evaluating the run on the other corpus in a second command."""
    found = summary(run)
    assert (found["data"], found["test_data"], found["labels"]) == ("a", "b", MAP)
    assert found["utterances"] == {"train": 12, "valid": 6, "test": 18}
    assert found["protocol"] == "trained on a, tested on b; best epoch chosen on 30% of the training speakers"
    assert json.loads((run / "config.json").read_text())["labels"] == MAP
    assert found["per_speaker"].keys() == {"b/s0", "b/s1", "b/s2"}
    labels = str(voices / "map.yaml")  # its lines for labels of a are passed over
    other = evaluate(EvaluateConfig(str(run), str(voices / "b.csv"), labels, batch_size=6, out=tmp_path / "b"))
    assert other["metrics"] == {name: value for name, value in found["best"].items() if name != "loss"}
    assert other["intervals"] == found["intervals"]
    assert "(trained on a) on b: 18 of 27 utterances" in other["protocol"]


def test_run_on_two_corpora_is_evaluated_again(run, voices, tmp_path):
    again = evaluate(EvaluateConfig(str(run), part="test", batch_size=6, out=tmp_path / "test"))
    assert confusion(again["metrics"]) == confusion(summary(run)["best"]) and again["notice"] == ""
    own = evaluate(EvaluateConfig(str(run), str(voices / "a.csv"), str(voices / "map.yaml"), out=tmp_path / "a"))
    assert own["notice"] == "18 of the 36 utterances are of the run's training or validation part"


def test_run_on_two_corpora_resumes(run, voices, tmp_path):
    whole = runs.train(config(voices, tmp_path / "whole", epochs=2), TINY)
    runs.train(config(voices, tmp_path / "parts"), TINY)
    parts = runs.train(config(voices, tmp_path / "parts", epochs=2), TINY)
    assert parts["best"] == whole["best"] and parts["last"] == whole["last"]


def test_run_refuses_another_test_corpus(run, voices):
    """The digest covers both corpora."""
    (voices / "c.csv").write_text("\n".join((voices / "b.csv").read_text().splitlines()[:-4]) + "\n")
    with pytest.raises(ValueError, match="whose corpus differs from the one that the run in"):
        runs.train(config(voices, run, test_data=str(voices / "c.csv"), epochs=2), TINY)
    with pytest.raises(ValueError, match="which contains a run with different labels"):
        runs.train(config(voices, run, labels=MAP | {"fear": "anger"}), TINY)


def test_run_of_an_older_version_resumes(voices, tmp_path):
    """Its config.json lacks the options of later versions, which are then at their defaults."""
    plain = config(voices, tmp_path, test_data="", labels="", test_speakers="s2")
    runs.train(plain, TINY)
    kept = json.loads((tmp_path / "config.json").read_text())
    for name in ("labels", "test_data", "test_groups", "allow_missing_classes", "columns"):
        del kept[name]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert evaluate(EvaluateConfig(str(tmp_path), part="test", out=tmp_path / "test"))["utterances"] == 9
    assert runs.train(plain, TINY)["epochs"] == 1
    del kept["test_fraction"]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="which contains a run with different test_fraction"):
        runs.train(plain, TINY)


def renamed(voices: Path, corpus: str) -> str:
    """Return a corpus as a table of a spreadsheet, under other names of the columns."""
    text = (voices / f"{corpus}.csv").read_text().replace("file,speaker,label", "path,spk,emotion").replace(",", ";")
    (voices / f"{corpus}_theirs.csv").write_bytes(text.encode("utf-16"))
    return str(voices / f"{corpus}_theirs.csv")


def test_run_with_names_of_columns(voices, tmp_path):
    """The run and its evaluation equal those of a table with our names; the names are options of the run."""
    ours = config(voices, tmp_path / "ours", test_data="", labels="", test_speakers="s2")
    names = "file=path,speaker=spk,label=emotion"
    theirs = config(voices, tmp_path / "run", data=renamed(voices, "a"), columns=names, test_data="", labels="",
                    test_speakers="s2")  # fmt: skip
    best = runs.train(theirs, TINY)["best"]
    assert best == runs.train(ours, TINY)["best"]
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["columns"] == {"file": "path", "speaker": "spk", "label": "emotion"}
    again = evaluate(EvaluateConfig(str(tmp_path / "run"), part="test", batch_size=6, out=tmp_path / "out"))
    assert confusion(again["metrics"]) == confusion(best)
    changed = EvaluateConfig(str(tmp_path / "run"), columns="speaker=emotion", test_speakers="fear",
                             out=tmp_path / "changed")  # fmt: skip
    assert evaluate(changed)["utterances"] == 9, "the other names are those of the run"
    other = EvaluateConfig(str(tmp_path / "ours"), data=theirs.data, columns=names, out=tmp_path / "other")
    assert evaluate(other)["utterances"] == 27
    with pytest.raises(ValueError, match="or named by --columns=file=path"):
        evaluate(EvaluateConfig(str(tmp_path / "ours"), data=theirs.data, out=tmp_path / "third"))
    with pytest.raises(ValueError, match="which contains a run with different columns"):
        runs.train(config(voices, tmp_path / "ours", columns="file=file", test_data="", labels="",
                          test_speakers="s2"), TINY)  # fmt: skip


def test_corpus_of_takes_columns_of_its_tables(voices, tmp_path):
    names = {"file": "path", "speaker": "spk", "label": "emotion"}
    both = config(voices, tmp_path, data=renamed(voices, "a"), test_data=renamed(voices, "b"), columns=names)
    assert [one.speaker for one in corpus_of(both).utterances] == [
        one.speaker.replace("b/", "b_theirs/") for one in corpus_of(config(voices, tmp_path)).utterances
    ]
    with pytest.raises(ValueError, match="columns names 'path' for 'file', which is no column"):
        corpus_of(config(voices, tmp_path, test_data=renamed(voices, "b"), columns=names))
    with pytest.raises(ValueError, match=r"columns is given, but corpus 'emodb:x' is no \.csv"):
        corpus_of(TrainConfig(data="emodb:x", columns=names))


def test_run_with_mapped_labels(voices, tmp_path, capsys):
    mapped = config(voices, tmp_path / "run", test_data="", labels={"fear": "sadness"}, test_speakers="s2")
    found = runs.train(mapped, TINY)
    assert found["labels"] == {"fear": "sadness"} and found["test_data"] == ""
    assert {name: row["support"] for name, row in found["best"]["per_class"].items()} == {"anger": 3, "sadness": 6}
    assert "counted fear as sadness" in capsys.readouterr().out
    assert "counted fear as sadness" in (tmp_path / "run" / "report.html").read_text()
    again = evaluate(EvaluateConfig(str(tmp_path / "run"), part="test", batch_size=6, out=tmp_path / "out"))
    assert confusion(again["metrics"]) == confusion(found["best"])


def test_corpus_of_refuses_unknown_labels(voices, tmp_path):
    with pytest.raises(
        ValueError, match=r"labels maps 'rage'; it must be a label of the corpus: anger, fear, sadness$"
    ):
        corpus_of(config(voices, tmp_path, test_data="", labels={"rage": "anger"}))
    with pytest.raises(ValueError, match="a label of the corpus: anger, angry, calm, fear, sad, sadness"):
        corpus_of(config(voices, tmp_path, labels={"rage": "anger"}))
    with pytest.raises(
        ValueError, match=re.escape("test_data has the labels angry, calm, sad, but the corpus a has")
    ):
        corpus_of(config(voices, tmp_path, labels=""))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpus_of(config(voices, tmp_path, test_data="nowhere"))

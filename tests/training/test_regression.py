"""Runs on values: several targets, any scale, resuming, evaluation and prediction."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.cli import main
from ser_fast.data.corpora import load_corpus
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.dataset import load_dataset
from ser_fast.prediction.predictor import Predictor
from ser_fast.reports import runs
from ser_fast.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.corpus import corpus_of
from ser_fast.training.cross_validation import cross_validate
from ser_fast.training.evaluation import EvaluateConfig, evaluate
from ser_fast.training.folds import Folds
from ser_fast.training.trainer import Trainer

EMOTIONS = {"anger": (4.6, 1.4), "happiness": (4.0, 4.7), "sadness": (1.3, 2.0)}  # arousal and valence, from 1 to 5
TINY = {"channels": (4, 4), "hidden_size": 16, "hop_length": 320}
OPTIONS = ["--model=cgru", *(f"--cgru.{name}={json.dumps(value).lower()}" for name, value in TINY.items())]


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    """A manifest of 3 emotions by 4 speakers in 3 takes with ratings from 1 to 5, and the same in another unit."""
    root = tmp_path_factory.mktemp("voices")
    generator = np.random.default_rng(0)
    rated, other = ["file,speaker,label,arousal,valence"], ["file,speaker,arousal,valence"]
    for emotion, means in EMOTIONS.items():
        for speaker in range(4):
            for take in range(3):
                name = f"{emotion}_{speaker}_{take}.wav"
                soundfile.write(root / name, synthesize(emotion, speaker, take, 16000).numpy(), 16000)
                arousal, valence = (float(value) for value in np.clip(generator.normal(means, 0.2), 1, 5).round(3))
                rated.append(f"{name},s{speaker},{emotion},{arousal},{valence}")
                other.append(f"{name},s{speaker},{1000 + 100 * arousal!r},{valence}")
    (root / "rated.csv").write_text("\n".join(rated) + "\n")
    (root / "other.csv").write_text("\n".join(other) + "\n")
    return root


def config(data: Path, out: Path, targets: str = "arousal,valence", **changes) -> TrainConfig:
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "test_speakers": "s3", "validation": "random"}
    return TrainConfig(str(data), out, "cgru", targets=targets, device="cpu", **(options | changes))


def train(given: TrainConfig) -> Trainer:
    dataset = load_dataset(load_corpus(given.data, given.targets), 16000)
    with run_folder(given.out, run_options(given, TINY)) as folder:
        trainer = Trainer(given, TINY, dataset, dataset.split(**given.held_out), folder)
        trainer.run()
    return trainer


def table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_run_on_a_scale_from_1_to_5(voices, tmp_path, capsys):
    """The command's whole output, for one target whose signs are all positive."""
    out = tmp_path / "run"
    options = [f"--data={voices / 'rated.csv'}", "--targets=arousal", "--epochs=14", "--batch_size=8", "--test_speakers=s3",
               "--learning_rate=1e-2", "--validation=none", "--device=cpu", f"--out={out}", *OPTIONS]  # fmt: skip
    assert main(["train", *options]) == 0
    printed, page = capsys.readouterr().out, (out / "report.html").read_text()
    summary = json.loads((out / "summary.json").read_text())
    values = {row["file"]: float(row["arousal"]) for row in table(voices / "rated.csv")}
    training = [value for name, value in values.items() if "_3_" not in name]
    rows = table(out / "predictions.csv")
    truth, predicted = (np.array([float(row[name]) for row in rows]) for name in ("truth", "predicted"))
    assert truth.tolist() == [values[row["name"]] for row in rows] and len(rows) == 9
    constant = np.abs(truth - np.mean(training)).mean()
    assert summary["best"]["mae"] == pytest.approx(np.abs(truth - predicted).mean())
    assert summary["best"]["mae"] < 0.7 * constant
    assert summary["best"]["ccc"] > 0.5 and summary["targets"] == ["arousal"]
    assert 1 - 0.5 < predicted.min() < predicted.max() < 5 + 0.5
    for text in (json.dumps(summary), printed, page, (out / "metrics.jsonl").read_text()):
        assert "accuracy" not in text.lower() and "acc-2" not in text.lower()
    assert "arousal from 1" in printed and "CCC" in printed and f"{summary['best']['mae']:.3f}" in page
    assert page.count("data:image/png;base64,") == 3 and "could not be drawn" not in page


def test_run_of_several_targets(voices, tmp_path):
    out = tmp_path / "run"
    trainer = train(config(voices / "rated.csv", out, epochs=3))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["best"]["per_target"].keys() == {"arousal", "valence"}
    rows = table(out / "predictions.csv")
    assert list(rows[0]) == [
        "name",
        "speaker",
        "truth_arousal",
        "predicted_arousal",
        "truth_valence",
        "predicted_valence",
    ]
    for name, found in summary["best"]["per_target"].items():
        truth, predicted = (
            np.array([float(row[f"{part}_{name}"]) for row in rows]) for part in ("truth", "predicted")
        )
        assert found["mae"] == pytest.approx(np.abs(truth - predicted).mean())
        assert found["corr"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1], abs=1e-6)
    means = {
        name: np.mean([found[name] for found in summary["best"]["per_target"].values()]) for name in ("ccc", "mae")
    }
    assert {name: summary["best"][name] for name in means} == pytest.approx(means)
    best = max(trainer.progress.rows, key=lambda row: row["score"])
    assert summary["best_epoch"] == best["epoch"] and best["score"] == -best["valid_standardised_mae"]
    # Checkpoints predict in the corpus's unit, the last one too; the trainer's model as well.
    paths = [voices / row["name"] for row in rows]
    for name in ("best", "last"):
        loaded = load_checkpoint(out / f"{name}.safetensors")
        assert loaded.targets == loaded.names == ["arousal", "valence"] and loaded.classes == []
    predictor = Predictor(out)
    assert predictor.names == ["arousal", "valence"]
    for row, (_, result) in zip(rows, predictor.files(paths)):
        assert result == {
            name: pytest.approx(float(row[f"predicted_{name}"]), abs=1e-4) for name in ("arousal", "valence")
        }
    last = [list(result.values()) for _, result in Predictor(out / "last.safetensors").files(paths)]
    truth = np.array([[float(row[f"truth_{name}"]) for name in ("arousal", "valence")] for row in rows])
    assert np.abs(np.array(last) - truth).mean() == pytest.approx(summary["last"]["mae"], abs=1e-4)


def test_run_of_several_targets_resumes(voices, tmp_path):
    straight = train(config(voices / "rated.csv", tmp_path / "straight", epochs=2))
    train(config(voices / "rated.csv", tmp_path / "halved", epochs=1))
    halved = train(config(voices / "rated.csv", tmp_path / "halved", epochs=2))
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, halved.model.state_dict()[name]), name
    assert straight.predictions == halved.predictions
    with pytest.raises(ValueError, match="which contains a run with different targets"):
        train(config(voices / "rated.csv", tmp_path / "halved", "arousal", epochs=2))


def test_training_does_not_depend_on_the_unit(voices, tmp_path):
    """Ratings times 100 plus 1000 give predictions times 100 plus 1000, up to rounding."""
    found = [train(config(voices / f"{name}.csv", tmp_path / name, epochs=2)) for name in ("rated", "other")]
    outputs = [
        np.array([[float(value) for value in row.predicted] for row in trainer.predictions]) for trainer in found
    ]
    np.testing.assert_allclose(outputs[1][:, 0], 1000 + 100 * outputs[0][:, 0], atol=0.05)
    np.testing.assert_allclose(outputs[1][:, 1], outputs[0][:, 1], atol=5e-4)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())["best"] for name in ("rated", "other")]
    (rated, other), (first, second) = summaries, [found["per_target"]["arousal"] for found in summaries]
    assert second["mae"] == pytest.approx(100 * first["mae"], rel=1e-3)
    assert (second["ccc"], other["loss"]) == pytest.approx((first["ccc"], rated["loss"]), abs=1e-3)


@pytest.mark.parametrize("loss", ["ccc", "mse"])
def test_run_learns_by_other_losses(loss, voices, tmp_path):
    trainer = train(config(voices / "rated.csv", tmp_path, loss=loss, epochs=8))
    rows = trainer.progress.rows
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    scores = {"ccc": "valid_ccc", "mse": "valid_standardised_mae"}
    assert all(abs(row["score"]) == abs(row[scores[loss]]) for row in rows)
    if loss == "ccc":
        assert rows[-1]["valid_loss"] == pytest.approx(1 - rows[-1]["valid_ccc"], abs=1e-5), "of the whole part"


def test_run_refuses_ccc_of_classes_and_single_utterances(voices, tmp_path, capsys):
    for options, said in (
        ([], "loss is ccc, but data has classes, not values; it must be one of auto, cross_entropy, l1"),
        (["--targets=arousal", "--batch_size=1"], "batch_size is 1; it must be at least 2 if loss is ccc"),
        (["--targets=mood"], "which is no column; it must be among the columns of numbers: arousal, valence"),
    ):
        assert (
            main(["train", f"--data={voices / 'rated.csv'}", f"--out={tmp_path / 'out'}", "--loss=ccc", *options])
            != 0
        )
        captured = capsys.readouterr()
        assert said in " ".join((captured.out + captured.err).split())
    assert not (tmp_path / "out").exists()


def test_evaluate_names_the_targets(voices, tmp_path, capsys):
    out = tmp_path / "run"
    train(config(voices / "rated.csv", out))
    summary = json.loads((out / "summary.json").read_text())
    command = ["evaluate", str(out), "--part=test", f"--out={tmp_path / 'test'}", "--batch_size=8", "--device=cpu"]
    assert main(command) == 0
    result, printed = json.loads((tmp_path / "test" / "summary.json").read_text()), capsys.readouterr().out
    assert result["metrics"]["per_target"]["valence"] == pytest.approx(summary["best"]["per_target"]["valence"])
    assert "all utterances: arousal" in printed and "valence, CCC: mean of the speakers" in printed
    assert result["per_target"]["arousal"]["per_speaker"].keys() == {"s3"}
    assert table(tmp_path / "test" / "predictions.csv") == table(out / "predictions.csv")
    page = (tmp_path / "test" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "accuracy" not in page.lower()
    # Other names of the same columns, in the model's order.
    renamed = (voices / "rated.csv").read_text().replace("arousal,valence", "activation,pleasure")
    (voices / "renamed.csv").write_text(renamed)
    given = {"checkpoint": str(out), "data": str(voices / "renamed.csv"), "test_speakers": "s3"}
    again = evaluate(EvaluateConfig(**given, targets="activation,pleasure", out=tmp_path / "renamed"))
    assert again["metrics"]["per_target"]["valence"] == pytest.approx(
        result["metrics"]["per_target"]["valence"], abs=1e-5
    )
    assert again["targets"] == ["arousal", "valence"]
    for targets, message in (
        (
            "",
            "targets names 'arousal', which is no column; it must be among the columns of numbers: activation, pleasure",
        ),
        (
            "activation",
            "targets is activation, but the model predicts arousal, valence; it must be a column for each",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(EvaluateConfig(**given, targets=targets, out=tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_cross_validation_of_several_targets(voices, tmp_path, capsys):
    out = tmp_path / "cv"
    options = [f"--data={voices / 'rated.csv'}", "--targets=[arousal, valence]", "--epochs=1", "--protocol=speakers", "--folds=2",
               "--batch_size=8", "--device=cpu", f"--out={out}", *OPTIONS]  # fmt: skip
    assert main(["cv", *options]) == 0
    result, printed = json.loads((out / "summary.json").read_text()), capsys.readouterr().out
    assert main(["cv", *options]) == 0
    assert json.loads((out / "summary.json").read_text()) == result, "read from the folds' tables"
    capsys.readouterr()
    folds = [run["metrics"]["per_target"]["valence"]["ccc"] for run in result["runs"]]
    assert result["per_target"]["valence"]["folds"]["ccc"] == pytest.approx([np.mean(folds), np.std(folds, ddof=1)])
    rows = [row for path in sorted(out.glob("seed0/fold*/predictions.csv")) for row in table(path)]
    errors = [abs(float(row["truth_arousal"]) - float(row["predicted_arousal"])) for row in rows]
    assert len(rows) == 36 and result["pooled"]["per_target"]["arousal"]["mae"] == pytest.approx(np.mean(errors))
    assert result["per_target"]["valence"].keys() == {"folds", "seeds", "per_speaker", "intervals"}
    for part in (result, *result["per_target"].values()):
        assert part["intervals"].keys() == {"ccc", "mae", "corr"}
        assert {name: row["utterances"] for name, row in part["per_speaker"].items()} == {
            f"s{i}": 9 for i in range(4)
        }
    spans = result["per_target"]["arousal"]["intervals"]["mae"]["pooled"]
    assert spans["value"] == result["pooled"]["per_target"]["arousal"]["mae"] and spans["low"] < spans["high"]
    assert "arousal, CCC: mean of the speakers, t interval" in printed
    assert "arousal: mean of the folds ± std" in printed and "left out: CCC" in printed
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "valence: all predictions together" in page
    assert '<th scope="col">valence</th><th scope="col">utterances</th>' in page
    assert page.count("<td>s3</td><td>9</td>") == 4, "the mean, two targets, and the corpus"


def test_cross_validation_counts_a_speaker_once_for_all_seeds(voices, tmp_path):
    given = config(voices / "rated.csv", tmp_path / "cv", test_speakers="", epochs=1)
    result = cross_validate(given, TINY, Folds("speakers", 2, seeds=2))
    for part in (result, *result["per_target"].values()):
        assert [row["utterances"] for row in part["per_speaker"].values()] == [9] * 4
    assert result["seeds"]["ccc"][1] is not None


def test_run_of_values_tests_on_another_corpus(voices, tmp_path):
    """The columns of the test corpus may have another name in an evaluation, not in a training."""
    lines = (voices / "rated.csv").read_text().splitlines()
    for name, header in (
        ("first", lines[0]),
        ("second", lines[0]),
        ("renamed", lines[0].replace("arousal", "energy")),
    ):
        kept = [line for line in lines[1:] if ("_2.wav" in line) == (name != "first")]
        (voices / f"{name}.csv").write_text("\n".join([header, *kept]) + "\n")
    given = config(
        voices / "first.csv", tmp_path / "run", test_speakers="", test_data=str(voices / "second.csv"), epochs=1
    )
    found = runs.train(given, TINY)
    assert (found["data"], found["test_data"], found["targets"]) == ("first", "second", ["arousal", "valence"])
    assert found["utterances"]["test"] == 12 and found["protocol"].startswith("trained on first, tested on second; ")
    again = evaluate(EvaluateConfig(str(given.out), part="test", out=tmp_path / "again", device="cpu"))
    options = {"targets": "energy,valence", "out": tmp_path / "renamed", "device": "cpu"}
    other = evaluate(EvaluateConfig(str(given.out), str(voices / "renamed.csv"), **options))
    for result in (again, other):
        for key in ("ccc", "mae", "corr"):
            assert result["metrics"][key] == pytest.approx(found["best"][key], rel=1e-4)
            spans, expected = (
                each["per_target"]["valence"]["intervals"][key]["speakers"] for each in (result, found)
            )
            assert spans == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="targets names 'arousal', which is no column"):
        corpus_of(
            config(voices / "first.csv", tmp_path / "x", test_speakers="", test_data=str(voices / "renamed.csv"))
        )


def test_run_of_values_without_test_predicts_in_their_unit(voices, tmp_path):
    given = config(voices / "rated.csv", tmp_path / "run", test_speakers="", test_fraction=0.0, epochs=3)
    found = runs.train(given, TINY)
    assert found["utterances"]["test"] == 0 and sum(found["utterances"].values()) == 36
    assert found["targets"] == ["arousal", "valence"] and not {"best", "last", "intervals"} & found.keys()
    assert [path.name for path in (given.out / "figures").iterdir()] == ["loss.png"]
    ((_, result),) = Predictor(given.out).files([voices / "anger_3_0.wav"])
    assert all(1 <= result[name] <= 5.5 for name in ("arousal", "valence"))


def test_cross_validation_chooses_by_the_loss(voices, tmp_path):
    given = config(voices / "rated.csv", tmp_path / "cv", test_speakers="", epochs=1, loss="ccc")
    choose = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]
    result = cross_validate(given, TINY, Folds("speakers", 2, choose=choose, inner_folds=2))
    scores = [run["scores"] for run in result["runs"]]
    trials = [json.loads(path.read_text())["best"]["ccc"]
              for path in sorted((tmp_path / "cv" / "seed0" / "choice01" / "candidate1").glob("*/fold*/summary.json"))]  # fmt: skip
    assert trials and scores[0][0] == pytest.approx(np.mean(trials))


def test_predict_writes_a_column_for_each_target(voices, tmp_path, capsys):
    out = tmp_path / "run"
    train(config(voices / "rated.csv", out, epochs=1))
    file = voices / "anger_3_0.wav"
    (row,) = [row for row in table(out / "predictions.csv") if row["name"] == file.name]
    expected = {name: pytest.approx(float(row[f"predicted_{name}"]), abs=1e-4) for name in ("arousal", "valence")}
    for suffix in ("csv", "jsonl"):
        written = tmp_path / f"all.{suffix}"
        assert main(["predict", str(out), str(file), f"--out={written}", "--device=cpu"]) == 0
        (found,) = table(written) if suffix == "csv" else [json.loads(written.read_text())]
        assert list(found) == ["file", "seconds", "arousal", "valence", "flag", "error"]
        assert {name: float(found[name]) for name in expected} == expected
    capsys.readouterr()
    assert main(["predict", str(out), str(file), "--device=cpu"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "arousal", "valence", "flag"]
    assert line.split()[1:3] == [f"{float(row[f'predicted_{name}']):.3f}" for name in ("arousal", "valence")]
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    assert main(["predict", str(out), str(silent), "--json", "--device=cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(silent),
        "arousal": None,
        "valence": None,
        "flag": "silent",
    }


def test_checkpoint_refuses_bad_targets(voices, tmp_path):
    train(config(voices / "rated.csv", tmp_path / "run", epochs=1))
    best, last = (load_checkpoint(tmp_path / "run" / f"{name}.safetensors") for name in ("best", "last"))
    assert not best.standardised and last.standardised.keys() == {"weight", "bias", "mean", "std"}
    path = tmp_path / "bad.safetensors"
    for targets, message in (
        (["flag", "x"], "targets names 'flag'; it must be none of"),
        (["a"], "does not fit cgru"),
    ):
        best.targets = targets
        save_checkpoint(path, best)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path).build(path)
    last.standardised["mean"] = last.standardised["mean"][:1]
    save_checkpoint(path, last)
    with pytest.raises(CheckpointError, match=r"has standardised .*'mean': 'torch.float64 \[1\]'.*; it must be"):
        load_checkpoint(path)


def test_run_of_an_older_version_resumes_in_its_unit(voices, tmp_path):
    """Such a run has no option targets, no names in its checkpoints, and last weights in the corpus's unit."""
    lines = [
        ",".join(line.split(",")[:2] + line.split(",")[3:4])
        for line in (voices / "rated.csv").read_text().splitlines()
    ]
    (voices / "value.csv").write_text("\n".join(["file,speaker,value", *lines[1:]]) + "\n")
    given = config(voices / "value.csv", tmp_path / "run", "", epochs=1)
    train(given)
    options = json.loads((given.out / "config.json").read_text())
    assert options.pop("targets") == []
    (given.out / "config.json").write_text(json.dumps(options))
    for name in ("best", "last"):
        checkpoint = load_checkpoint(given.out / f"{name}.safetensors")
        checkpoint.standardised = {}
        for row in checkpoint.progress.get("rows", ()):
            del row["valid_ccc"]
        save_checkpoint(given.out / f"{name}.safetensors", checkpoint)
    trainer = train(config(voices / "value.csv", given.out, "", epochs=2))
    assert trainer.task.std.tolist() == [1.0] and len(trainer.progress.rows) == 2
    second = trainer.progress.rows[1]
    assert second["valid_loss"] == pytest.approx(second["valid_mae"], rel=1e-5), "the loss is in the corpus's unit"
    assert load_checkpoint(given.out / "best.safetensors").targets == ["value"]
    ((_, result),) = Predictor(given.out).files([voices / "anger_3_0.wav"])
    row = next(row for row in table(given.out / "predictions.csv") if row["name"] == "anger_3_0.wav")
    assert result == {"value": pytest.approx(float(row["predicted"]), abs=1e-4)}

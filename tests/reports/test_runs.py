"""Reports of whole runs."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.reports import figures, html, runs
from ser_fast.reports.terminal import TrainingDisplay

OPTIONS = [
    "--model=cgru",
    "--cgru.channels=[4,4]",
    "--cgru.hidden_size=8",
    "--epochs=1",
    "--batch_size=6",
    "--valid_fraction=0.25",
]


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> str:
    """Two emotions of two speakers in four takes, as the value of --data."""
    root = tmp_path_factory.mktemp("voices")
    for emotion in ("anger", "sadness"):
        for speaker in range(2):
            folder = root / emotion / f"0{speaker}"
            folder.mkdir(parents=True)
            for take in range(4):
                soundfile.write(folder / f"{take}.wav", synthesize(emotion, speaker, take, 8000).numpy(), 8000)
    return f"folders:{root}"


def test_report_survives_a_failing_picture(voices, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no ink")

    monkeypatch.setattr("ser_fast.reports.figures.confusion", fail)
    assert main(["train", f"--data={voices}", f"--out={tmp_path}", "--test_speakers=01", *OPTIONS]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "confusion.png could not be drawn: no ink" in page and page.count("data:image/png;base64,") == 2


def test_report_of_cross_validation_shows_all_folds(voices, tmp_path, capsys):
    assert main(["cv", f"--data={voices}", f"--out={tmp_path}", *OPTIONS]) == 0
    assert "leave one speaker out, 2 speakers" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "all predictions together" in page and page.count("data:image/png;base64,") == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [run["fold"] for run in summary["runs"]] == ["00", "01"]


def test_run_names_its_corpus_before_it_reads(voices, tmp_path, capsys):
    """Classes, speakers and files that are passed over are printed, reported and kept with the results."""
    copy = shutil.copytree(voices.removeprefix("folders:"), tmp_path / "corpus")
    for take in range(3):
        (copy / "anger" / "00" / f"{take}.wma").touch()
    options = [f"--data=folders:{copy}", *OPTIONS]
    for command in (["train", "--test_speakers=01"], ["cv"]):
        out = tmp_path / command[0]
        assert main([*command, f"--out={out}", *options]) == 0
        printed, page = capsys.readouterr().out, (out / "report.html").read_text()
        passed_over = json.loads((out / "summary.json").read_text())["passed_over"]
        assert passed_over.startswith("passed over 3 of 19 audio files: 3 .wma")
        for line in ("corpus: 16 utterances of 2 speakers", "anger 8, sadness 8", "00 8, 01 8", passed_over):
            assert line in printed[: printed.index("epoch" if command[0] == "train" else "  1/2")]
            assert line in page


def test_attention_names_path_and_labels(voices, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("ser_fast.reports.figures.attention", lambda *given: titles.append(given[3]))
    assert main(["train", f"--data={voices}", f"--out={tmp_path}", "--test_speakers=01", *OPTIONS]) == 0
    labels = "(anger|sadness)"
    assert re.fullmatch(rf"(sadness/01/0.wav)\ntrue: sadness, predicted: {labels}", titles[0])


def test_long_run_prints_its_progress_to_a_file(voices, tmp_path, monkeypatch, capsys):
    """Standard output is no terminal here; a bar would show nothing before the first epoch ends."""
    monkeypatch.setattr("ser_fast.data.pace.SECONDS", 0.0)
    options = [option for option in OPTIONS if "cgru" not in option]
    small = ["--model=bigru_mha", "--bigru_mha.hidden_size=8", "--bigru_mha.num_heads=2", "--batch_size=2"]
    assert main(["train", f"--data={voices}", f"--out={tmp_path}", "--test_speakers=01", *options, *small]) == 0
    printed = capsys.readouterr().out
    places = [re.search(line, printed) for line in (
        r"read 2 of 16 utterances\n", r"bigru_mha: statistics of the spectrograms: 1 of 3 batches\n",
        r"bigru_mha epoch 1/1, 33% done  loss \d\.\d+  accuracy", r"bigru_mha epoch   1/1  loss",
    )]  # fmt: skip
    assert [place.start() for place in places] == sorted(place.start() for place in places)


def test_fold_table_leaves_out_measures_of_newer_versions():
    """A finished fold of an older version has no CCC, while the predictions of all folds together have."""
    metrics = {"mae": 0.5, "corr": 0.25}
    over = {name: [value, 0.0625] for name, value in metrics.items()}
    run = {"seed": 0, "fold": "a", "metrics": metrics}
    result = {"runs": [run], "folds": over, "seeds": over, "pooled": metrics | {"ccc": 0.125}}
    header, rows = runs.fold_table(result)
    assert header == ["", "MAE", "Pearson r"] and rows[0] == ["seed 0, without a", "0.500", "0.250"]
    assert rows[1] == ["mean of the folds ± std", "0.500 ± 0.062", "0.250 ± 0.062"]


def test_target_table_has_every_target():
    def over(ccc: float) -> dict:
        return {"folds": {"ccc": [ccc, None], "mae": [2.0, None], "corr": [0.5, None]}}

    def measured(ccc: float) -> dict:
        return {"ccc": ccc, "mae": 250.0, "corr": 0.75}

    pooled = measured(0.3) | {"per_target": {"arousal": measured(0.2), "age": measured(0.4)}}
    header, rows = runs.target_table({"pooled": pooled, "per_target": {"arousal": over(0.1), "age": over(0.6)}})
    assert header == ["", "CCC", "MAE", "Pearson r"]
    assert rows == [
        ["arousal: mean of the folds ± std", "0.100", "2.000", "0.500"],
        ["arousal: all predictions together", "0.200", "250.000", "0.750"],
        ["age: mean of the folds ± std", "0.600", "2.000", "0.500"],
        ["age: all predictions together", "0.400", "250.000", "0.750"],
    ]


def test_number_keeps_the_unit():
    shown = [html.number("mae", value) for value in (2.5, 0.0123, 0.000123456, 1234567.8, 0.0)]
    assert shown == ["2.500", "0.012", "0.000123", "1.23e+06", "0.000"]
    assert (html.number("ccc", -0.5), html.number("acc2", 0.5)) == ("-0.500", "50.0")


def test_epoch_of_values_names_their_measures(capsys):
    display = TrainingDisplay("cgru", 3)
    row = {
        "epoch": 1,
        "loss": 0.5,
        "utterances": 8,
        "seconds": 2.0,
        "valid_loss": 0.6,
        "valid_mae": 12.345,
        "valid_ccc": 0.25,
    }
    for given, shown in (
        (row, "validation MAE 12.35  CCC 0.250  4 utterances"),
        (row | {"valid_standardised_mae": 0.5}, "validation CCC 0.250  4 utterances"),
        ({name: value for name, value in row.items() if name != "valid_ccc"}, "validation MAE 12.35  4 utterances"),
    ):
        display.on_epoch(given)
        assert shown in capsys.readouterr().out


def test_scatter_draws_every_target_with_equal_axes(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or path)
    truth = np.array([[1.0, 20.0, 3.0, 0.0], [5.0, 60.0, 3.0, 1.0]])
    figures.scatter(truth, truth + 1, ["arousal", "age", "constant", "mood"], tmp_path / "scatter.png")
    panels = [axes for axes in kept[0].axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["true arousal", "true age", "true constant", "true mood"]
    for axes, column in zip(panels, truth.T):
        assert (
            axes.get_xlim() == axes.get_ylim()
            and axes.get_xlim()[0] < column.min() <= column.max() + 1 < axes.get_xlim()[1]
        )
        assert axes.collections[0].get_offsets().tolist() == [[value, value + 1] for value in column]


def test_report_gives_intervals_over_speakers(voices, tmp_path, capsys):
    """One test speaker has none, which is said; each speaker has a row."""
    for command, out, said in (
        (["train", "--test_speakers=01"], tmp_path / "train", "one speaker: no interval"),
        (["cv"], tmp_path / "cv", "bootstrap over speakers, 2000 draws"),
    ):
        assert main([*command, f"--data={voices}", f"--out={out}", *OPTIONS]) == 0
        printed, page = capsys.readouterr().out, (out / "report.html").read_text()
        assert said in printed and said in page and "<td>01</td><td>8</td>" in page
        summary = json.loads((out / "summary.json").read_text())
        assert summary["per_speaker"].keys() == ({"01"} if command[0] == "train" else {"00", "01"})
        ends = [summary["intervals"]["recall"][kind]["low"] for kind in ("speakers", "pooled")]
        assert (ends == [None, None]) == (command[0] == "train")


def test_demo_gives_intervals_of_each_network():
    span = {"value": 0.5, "low": 0.25, "high": 0.75}
    intervals = {"recall": {"speakers": {"mean": 0.5, "low": 0.1, "high": 0.9}, "pooled": span}, "accuracy": None}
    summary = {"best": {"recall": 0.5, "accuracy": 0.5}, "intervals": intervals, "bootstrap": {"draws": 2000}}
    header, rows = runs._spans({key: summary for key in runs.DEMO})
    assert header == ["", "value", "95 % from", "to"] and len(rows) == 2 * len(runs.DEMO)
    assert rows[0][0].startswith("CGRU, recall (UA) %: all utterances") and rows[0][1:] == ["50.0", "25.0", "75.0"]


def test_report_without_test_has_no_metrics(voices, tmp_path, capsys):
    """The run also resumes, and measures nothing when it is evaluated on its test part."""
    command = ["train", f"--data={voices}", f"--out={tmp_path}", "--test_fraction=0", *OPTIONS]
    assert main(command) == 0 and main([*command, "--epochs=2"]) == 0
    said = capsys.readouterr().out
    assert "trained on all utterances, no test; best epoch chosen on" in said and "Test:" not in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["utterances"]["test"] == 0 and sum(summary["utterances"].values()) == 16
    assert summary["epochs"] == 2 and not {"best", "last"} & summary.keys()
    assert not (tmp_path / "predictions.csv").exists()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["loss.png"]
    assert "confusion" not in (tmp_path / "report.html").read_text()
    assert main(["evaluate", str(tmp_path), "--part=test", f"--out={tmp_path / 'test'}"]) == 1
    assert "leave no utterance; they must leave some" in capsys.readouterr().err

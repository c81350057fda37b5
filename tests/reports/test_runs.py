"""Reports of whole runs."""

import json
import re
import shutil

import pytest
import soundfile

from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize

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
    monkeypatch.setattr("ser_fast.reports.figures.attention", lambda *given: titles.append(given[-1]))
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

"""The command line, run in a separate process as a user runs it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from selection import important

import ser_fast
from ser_fast.cli import main
from ser_fast.data.corpora.synthetic import synthesize


def ser_fast_command(*arguments, cwd=None, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "ser_fast", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "160"} | environment,
    )  # fmt: skip


TINY = ("--cgru.channels=[4,4]", "--cgru.hidden_size=8", "--model=cgru", "--epochs=2", "--batch_size=6",
        "--valid_fraction=0.2")  # fmt: skip


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("voices")
    lines = ["file,speaker,label"]
    for emotion in ("anger", "sadness"):
        for speaker in range(3):
            for take in range(5):
                name = f"{emotion}_{speaker}_{take}.wav"
                soundfile.write(root / name, synthesize(emotion, speaker, take, 8000).numpy(), 8000)
                lines.append(f"{name},0{speaker},{emotion}")
    (root / "all.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def run(voices, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    result = ser_fast_command("train", f"--data={voices / 'all.csv'}", f"--out={out}", "--test_speakers=01", *TINY)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "speakers 01 held out" in result.stdout and "report.html" in result.stdout
    return out


@pytest.mark.usefixtures("needs_kernels")
def test_info_shows_what_runs():
    result = ser_fast_command("info")
    assert result.returncode == 0 and result.stderr == ""
    for line in (rf"ser_fast +{ser_fast.__version__}", r"loaded +yes", r"tensors on cpu +the compiled kernels", r"gru on cpu +compiled", r"cuda kernels +\w+",
                 r"triton kernels +(tested on|not yet run on) .+; triton [\d.]+; SER_FAST_BACKEND=triton selects them"):  # fmt: skip
        assert re.search(line, result.stdout), result.stdout
    forced = ser_fast_command("info", SER_FAST_BACKEND="reference")
    assert re.search(r"loaded +no: SER_FAST_BACKEND=reference", forced.stdout)
    assert re.search(r"tensors on cpu +torch's operators: SER_FAST_BACKEND=reference turns", forced.stdout)
    assert re.search(r"gru on cpu +torch\nattention_pool on cpu +reference", forced.stdout)


@pytest.mark.usefixtures("needs_kernels")
def test_info_shows_the_plan_of_a_shape():
    result = ser_fast_command("info", "--shape", "300", "64", "2", "256")
    assert result.returncode == 0 and result.stderr == ""
    assert (
        re.search(r"the CUDA kernels, (tested|not yet run) on", result.stdout)
        and "it is not a measurement" in result.stdout
    )
    half = result.stdout.split("  half precision, forward\n")[1].splitlines()[0]
    assert re.fullmatch(
        r"    tiles: \d+ of (8|16) rows on \d x \d+ threads; W_hh as 256 units; \d+ KB of shared memory a block; waves: 1; "
        r"about \d\.\d\d us a step, \d\.\d\d ms in all",
        half,
    )
    assert "torch, because W_hh does not fit on the chip" in result.stdout.split("A100")[1]
    refused = ser_fast_command("info", "--shape", "300", "64", "3", "256")
    assert refused.returncode == 1 and "--shape: D is 3; it must be 1 or 2" in refused.stderr


def test_train_writes_the_run_folder(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {
        ".lock", "config.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "summary.json", "report.html",
        "predictions.csv", "figures/loss.png", "figures/confusion.png", "figures/attention.png",
    }  # fmt: skip
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "speakers 01 held out" in page
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.thorough
def test_train_reads_a_saved_config(run, voices, tmp_path):
    result = ser_fast_command("train", f"--config={run / 'config.json'}", f"--out={tmp_path / 'b'}", "--epochs=1")
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "b"))
    assert first | {"out": 0, "epochs": 0} == second | {"out": 0, "epochs": 0} and second["epochs"] == 1
    assert first["test_speakers"] == ["01"]


@pytest.mark.thorough
def test_cv_tests_every_speaker(voices, tmp_path):
    out = tmp_path / "cv"
    options = ("cv", f"--data={voices / 'all.csv'}", f"--out={out}", *TINY, "--epochs=1", "--jobs=2")
    result = ser_fast_command(*options)
    assert (result.returncode, result.stderr) == (0, "")
    assert "leave one speaker out, 3 speakers" in result.stdout and "all predictions together" in result.stdout
    assert "  3/3  seed 0, " in result.stdout
    names = {path.name for path in out.iterdir()}
    assert names == {".lock", "config.json", "summary.json", "report.html", "figures", "seed0"}
    summary = json.loads((out / "summary.json").read_text())
    assert [run["fold"] for run in summary["runs"]] == ["00", "01", "02"]
    assert sum(map(sum, summary["pooled"]["confusion"])) == 30
    again = ser_fast_command(*options)
    assert again.returncode == 0 and json.loads((out / "summary.json").read_text()) == summary
    fold = out / "seed0" / "fold02"
    run = ser_fast_command("train", f"--config={fold / 'config.json'}", f"--out={tmp_path / 'again'}")
    assert run.returncode == 0, run.stderr
    table = (fold / "predictions.csv").read_text()
    assert table.startswith("name,speaker,truth,predicted,p_anger,p_sadness\n") and table.count(",01,") == 10


@pytest.mark.thorough
def test_train_reads_its_printed_options(tmp_path):
    printed = ser_fast_command("train", "--model=cgru", "--print_config")
    assert (printed.returncode, printed.stderr) == (0, "")
    (tmp_path / "options.yaml").write_text(printed.stdout)
    again = ser_fast_command("train", f"--config={tmp_path / 'options.yaml'}", "--data=nowhere")
    assert again.returncode == 1 and again.stderr.startswith("ser-fast: corpus 'nowhere'"), again.stderr


@pytest.mark.thorough
def test_train_takes_a_recipe_by_name(voices, tmp_path):
    options = (f"--data={voices / 'all.csv'}", "--epochs=1", *TINY[:2], "--test_speakers=01")
    result = ser_fast_command("train", "--config=paper1", f"--out={tmp_path / 'a'}", *options)
    assert (result.returncode, result.stderr) == (0, "")
    kept = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (kept["learning_rate"], kept["batch_size"], kept["model"]) == (0.005, 64, "cgru")
    unknown = ser_fast_command("train", "--config=paper9", *options)
    assert unknown.returncode == 2 and "paper9" in unknown.stderr and "Traceback" not in unknown.stderr


def test_predict_prints_probabilities(run, voices):
    table = ser_fast_command("predict", run, voices / "anger_0_0.wav", voices / "sadness_2_1.wav")
    assert table.returncode == 0 and table.stderr == ""
    assert "anger_0_0.wav" in table.stdout and "sadness_2_1.wav" in table.stdout
    lines = ser_fast_command("predict", run / "last.safetensors", voices, "--json")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert len(rows) == 30
    for row in rows:
        assert set(row["probabilities"]) == {"anger", "sadness"}
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    one = ser_fast_command("predict", run / "last.safetensors", rows[7]["file"], "--json")
    assert json.loads(one.stdout)["probabilities"] == pytest.approx(rows[7]["probabilities"], abs=1e-5)


def test_evaluate_measures_a_run_on_another_corpus(run, voices, tmp_path, capsys):
    lines = [line.replace("sadness", "tired") for line in (voices / "all.csv").read_text().splitlines()]
    (voices / "other.csv").write_text("\n".join(line.replace("tired_", "sadness_") for line in lines) + "\n")
    (tmp_path / "map.yaml").write_text("tired: sadness\nanger: null\n")
    options = (f"--data={voices / 'other.csv'}", "--test_speakers=01,02")
    result = ser_fast_command(
        "evaluate", run, *options, f"--labels={tmp_path / 'map.yaml'}", f"--out={tmp_path / 'out'}"
    )
    assert (result.returncode, result.stderr) == (0, "")
    said = (
        "on other: 10 of 30 utterances of 2 speakers; counted tired as sadness; left out anger (15); no utterance of"
    )
    assert said in result.stdout and f"report: {tmp_path / 'out' / 'report.html'}" in result.stdout
    assert main(["evaluate", str(run), *options, f"--out={tmp_path / 'none'}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--labels must name a YAML file that maps tired, such as `tired: anger`" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.thorough
def test_predict_skips_bad_files(run, voices, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    (tmp_path / "[red]\x1b[31m.wav").write_text("no audio")
    soundfile.write(tmp_path / "still.wav", [0.0] * 16000, 8000)
    result = ser_fast_command("predict", run, tmp_path, "nowhere", voices / "anger_0_0.wav", "--json")
    reasons = "  2 not readable as audio: Format not recognised.\n  1 no such file or folder\n"
    said = f"ser-fast: 3 of 5 files could not be predicted; their rows say why:\n{reasons}"
    assert (result.returncode, result.stderr) == (1, said)
    rows = {Path(row["file"]).name: row for row in map(json.loads, result.stdout.splitlines())}
    assert {name for name, row in rows.items() if "error" in row} == {"bad.wav", "nowhere", "[red]\x1b[31m.wav"}
    assert (rows["still.wav"]["flag"], rows["anger_0_0.wav"]["flag"]) == ("silent", "")
    table = ser_fast_command("predict", run, tmp_path, "nowhere").stdout
    assert re.search(r"^file +label +anger +sadness +flag$", table, re.MULTILINE), table
    assert re.search(r"still.wav +- +- +- +silent$", table, re.MULTILINE), table
    assert re.search(r"\[red\]\\x1b\[31m.wav +- +- +- +error: not readable as audio", table), table
    for checkpoint in (bad.rename(tmp_path / "bad.safetensors"), tmp_path / "none"):
        refused = ser_fast_command("predict", checkpoint, voices)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr


@pytest.mark.thorough
def test_predict_skips_missing_paths(run, voices, tmp_path):
    result = ser_fast_command("predict", run, "nowhere", tmp_path, voices / "anger_0_0.wav", "--json")
    assert result.returncode == 1 and len(result.stdout.splitlines()) == 3
    folder = ser_fast_command("predict", run.parent, voices)
    assert folder.returncode == 1 and f"is no run folder itself; it holds {run}" in folder.stderr


@pytest.mark.thorough
def test_commands_show_names_as_they_are(voices, tmp_path):
    """Markup, mathematics, an escape sequence, Chinese and other than UTF-8 in the names of files and classes."""
    names = {os.fsdecode(b"a$x$[b]\xd6"): "one[final].wav", "[b]中性": os.fsdecode(b"two\x1b[31m[red]\xd0.wav")}
    for label, name in names.items():
        for take in range(6):
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(voices / f"anger_0_{take % 5}.wav", tmp_path / "data" / label / f"{take}{name}")
    out = tmp_path / "out"
    trained = ser_fast_command("train", f"--data=folders:{tmp_path / 'data'}", f"--out={out}", *TINY)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert len(list(out.glob("figures/*.png"))) == 3 and (out / "report.html").is_file()
    table = ser_fast_command("predict", out, tmp_path / "data")
    assert (table.returncode, table.stderr) == (0, "")
    for shown in (r"a$x$[b]\udcd6", "[b]中性", "one[final].wav", r"two\x1b[31m[red]\udcd0.wav"):
        assert shown in table.stdout
    assert "\x1b" not in table.stdout
    files = sorted((tmp_path / "data").glob("*/0*"))
    rows = ser_fast_command("predict", out, *files, "--json").stdout.splitlines()
    assert [json.loads(row)["file"] for row in rows] == list(map(str, files))


@pytest.mark.thorough
def test_train_stops_at_bad_files_or_skips_them(voices, tmp_path):
    lines = (voices / "all.csv").read_text().replace("anger_0_0.wav", str(voices / "anger_0_0.wav")).splitlines()
    lines = [lines[0], *(line if line.startswith("/") else f"{voices}/{line}" for line in lines[1:])]
    (tmp_path / "text.wav").write_text("no audio")
    lines += ["text.wav,00,anger", "absent.wav,00,sadness"]
    (tmp_path / "some.csv").write_text("\n".join(lines) + "\n")
    options = ("train", f"--data={tmp_path / 'some.csv'}", f"--out={tmp_path / 'out'}", "--test_speakers=01", *TINY)
    stopped = ser_fast_command(*options)
    assert stopped.returncode == 1 and "text.wav" in stopped.stderr and "absent.wav" in stopped.stderr
    assert not (tmp_path / "out").exists()
    skipped = ser_fast_command(*options, "--skip_bad")
    assert skipped.returncode == 0 and "skipped 2 unreadable utterances" in skipped.stdout
    left_out = json.loads((tmp_path / "out" / "summary.json").read_text())["skipped"]
    assert len(left_out) == 2 and (tmp_path / "out" / "unreadable.txt").read_text().splitlines() == left_out


BAD_COMMANDS = {
    "train --data=/nowhere": "/nowhere",
    "train --epochs=0": "epochs is 0; it must be at least 1",
    "train --model=transformer": "transformer",
    "train --hidden=3": "hidden",
    "train --epochs=many": "epochs",
    "train --model=cgru --bigru_mha.hidden_size=64": "bigru_mha.hidden_size is 64, but model is cgru",
    "train --model=cgru --cgru.f_max=0": "CGRU: f_max is 0.0; it must be above 0 hertz",
    "train --model=cgru --cgru.dropout=1.5": "CGRU: dropout is 1.5; it must be in 0..1",
    "train --model=cgru --cgru.hop_length=0": "hop_length",
    "train --cgru.cell=tanh": "cgru.cell",
    "train --data=synthetic --test_speakers=me": "test_speakers names ['me']",
    "train --out=": "out is '.'; it must be a folder of its own",
    "predict": "files",
    "predict nowhere.safetensors a.wav": "nowhere.safetensors does not exist",
    "predict nowhere a.wav": "nowhere does not exist; a run folder holds best.safetensors",
    "predict --checkpoint=nowhere a.wav": "nowhere does not exist",
    "predict nowhere.safetensors": "files is empty; it must be one name at least",
    "evaluate": "checkpoint",
    "evaluate nowhere --batch_size=0": "batch_size is 0; it must be at least 1",
    "dance": "dance",
    "": "demo",
}


@pytest.mark.parametrize(
    "command", important(BAD_COMMANDS, lambda command: command in ("", "predict", "train --epochs=0"))
)
def test_commands_refuse_bad_options_in_one_line(command, tmp_path):
    result = ser_fast_command(*command.split(), cwd=tmp_path)
    assert result.returncode in (1, 2) and BAD_COMMANDS[command] in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" and len(result.stderr.splitlines()) <= 3, result.stderr
    assert not list(tmp_path.iterdir())


def test_demo_compares_cgru_with_an_lstm_on_our_kernels_and_in_plain_torch(tmp_path):
    result = ser_fast_command("demo", f"--out={tmp_path}", "--epochs=1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"\bCGRU\b.*\n.*\bLSTM, our other kernels\b.*\n.*\bLSTM, plain torch\b", result.stdout)
    assert re.search(r"takes \d+% of the time of .* plain torch .* and \d+% of", " ".join(result.stdout.split()))
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for name in ("loss.png", "gru/figures/confusion.png", "gru/figures/attention.png"):
        assert (tmp_path / ("figures/loss.png" if name == "loss.png" else name)).stat().st_size > 10_000


def test_help_lists_commands_without_the_extras():
    heavy = {"jsonargparse", "matplotlib", "numpy.random", "rich", "scipy", "sklearn", "soundfile", "soxr", "yaml"}
    script = f"""
import sys
from ser_fast.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
print(sorted({heavy} & sys.modules.keys()), "ser_fast.reports" in sys.modules, "ser_fast.experiments" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for command in ("demo", "train", "cv", "experiment", "convert", "data", "evaluate", "predict", "info", "tune"):
        assert re.search(rf"^    {command}\b", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("[] False False\n")


@pytest.mark.parametrize(
    "command", ["demo", "train", "cv", "experiment", "convert", "data", "evaluate", "predict", "info", "tune"]
)
def test_help_of_each_command_lists_its_options(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: ser-fast {command} ") and not shown.err


def test_commands_name_the_missing_extra(tmp_path):
    blocker = tmp_path / "jsonargparse.py"
    blocker.write_text("raise ImportError('No module named jsonargparse')")
    result = ser_fast_command("demo", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and "pip install 'ser_fast[train]'" in result.stderr
    assert ser_fast_command("info", PYTHONPATH=str(tmp_path)).returncode == 0
    dry = ser_fast_command("tune", "--dry_run", PYTHONPATH=str(tmp_path), SER_FAST_TUNED=str(tmp_path / "tuned.json"))
    assert dry.returncode == 0 and dry.stdout.startswith("at most 120 s in all"), dry.stderr

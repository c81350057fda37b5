"""Commands whose standard output or error is closed, breaks, or cannot show a letter."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from selection import important

from ser_fast.cli import main

TINY = ("--model=cgru", "--cgru.channels=[4,4]", "--cgru.hidden_size=8", "--cgru.hop_length=640", "--batch_size=32")


def started(*arguments, **streams) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-m", "ser_fast", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **streams)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a finished run whose reader left after one line."""
    out = tmp_path_factory.mktemp("runs") / "a"
    options = ("train", "--data=synthetic", "--test_speakers=s00", f"--out={out}", "--epochs=2", *TINY)
    with started(*options, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
    return out


def test_train_outlives_the_reader_of_its_output(run):
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2
    assert (run / "report.html").is_file()


COMMANDS = {
    "info": 0,
    "train --data=synthetic --test_speakers=s00 --epochs=1 --out=OUT TINY": 0,
    "cv --data=synthetic --protocol=speakers --folds=2 --epochs=1 --out=OUT TINY": 0,
    "predict RUN nowhere.wav": 1,
    "predict RUN nowhere.wav --json": 1,
    "demo --epochs=1 --out=OUT": 0,
    "data synthetic-sentiment --headers_only --out=OUT.png": 0,
    "data nowhere": 1,
    "convert mosi nowhere --out=OUT.csv": 1,
    "experiment dance": 1,
    "train --epochs=none": 2,
    "dance": 2,
}


@pytest.mark.parametrize("command", important(COMMANDS, lambda command: not command.startswith(("cv", "demo"))))
def test_commands_run_with_closed_streams(command, run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    words = command.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")).replace("TINY", " ".join(TINY))
    assert main(words.split()) == COMMANDS[command]


def test_modules_import_without_streams():
    script = "import sys; sys.stdout = sys.stderr = None; from ser_fast import cli, experiments; from ser_fast.reports import runs"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_output_is_an_error_of_one_line():
    with open("/dev/full", "w") as full, started("info", stdout=full) as process:
        assert process.stderr.read() == "ser-fast: No space left on device\n"
    assert process.returncode == 1


def test_train_names_the_file_that_cannot_be_written(tmp_path):
    """The limit of the size of a file fails as a full disk does."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    options = ("train", "--data=synthetic", "--test_speakers=s00", f"--out={out}", "--epochs=1", *TINY)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (9000, 9000))
    with started(*options, stdout=subprocess.DEVNULL, preexec_fn=limit) as process:
        assert process.stderr.read() == f"ser-fast: {out / 'best.safetensors'}: File too large\n"
    assert process.returncode == 1
    assert {path.name for path in out.iterdir()} == {".lock", "config.json"}


def test_output_escapes_letters_that_its_encoding_lacks(run):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with started("predict", run, "中.wav", stdout=subprocess.PIPE, env=environment) as process:
        assert r"\u4e2d.wav " in process.stdout.read()

"""``ser-fast predict`` with an output file, as processes that are killed, shared and interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast.models import MODELS
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

OPTIONS = {"channels": (4, 4), "hidden_size": 8}
# Small parts, and a pause after each in which the process can be killed.
SCRIPT = """
import sys, time
from ser_fast import cli
from ser_fast.prediction import parts

parts.FILES = 20
write = parts.Parts.write

def slowly(*arguments):
    write(*arguments)
    time.sleep({pause})

parts.Parts.write = slowly
if __name__ == "__main__":
    sys.exit(cli.main())
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "a.safetensors"
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    save_checkpoint(path, Checkpoint("cgru", OPTIONS, ["x", "y", "z"], weights))
    return path


@pytest.fixture
def files(tmp_path) -> Path:
    """A list of 200 links to few files; one is no audio."""
    folder = tmp_path / "links"
    folder.mkdir()
    for take in range(5):
        soundfile.write(tmp_path / f"{take}.wav", 0.1 * torch.randn(3000 + 2000 * take).numpy(), 16000)
    for number in range(200):
        (folder / f"{number:04}.wav").symlink_to(tmp_path / f"{number % 5}.wav")
    (folder / "0123.wav").unlink()
    (folder / "0123.wav").write_text("no audio")
    return folder


def script(folder: Path, pause: float = 0.0) -> Path:
    path = folder / f"predict_{pause}.py"
    path.write_text(SCRIPT.format(pause=pause))
    return path


def predict(*command) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)


def started(*command) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def running(pid: int) -> bool:
    """Return whether a process runs; one that ended and was not waited for has no command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
@pytest.mark.thorough
def test_predict_resumes_after_a_kill(checkpoint, files, tmp_path):
    """All processes end with the killed one; the same command gives what an uninterrupted one gives."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert (
        predict(script(tmp_path), "predict", checkpoint, files, f"--out={whole}").returncode == 1
    )  # one is no audio
    command = [script(tmp_path, 0.3), "predict", checkpoint, files, f"--out={out}", "--workers=1"]
    parts = tmp_path / "out.jsonl.parts"
    with started(*command) as process:
        wait_for(lambda: len(list(parts.glob("0*.json"))) >= 3)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.kill()
    assert children and not out.exists()
    wait_for(lambda: not any(map(running, children)))
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    assert 3 <= len(done) < 10
    resumed = predict(script(tmp_path), *command[1:])
    assert resumed.returncode == 1 and f"files of interrupted runs: {20 * len(done)}" in resumed.stdout
    assert resumed.stderr.startswith(
        f"ser-fast: 1 of 200 files could not be predicted; their rows say why:\n  {files}/0123.wav: "
    )
    assert out.read_bytes() == whole.read_bytes() and not parts.exists()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(files / f"{number:04}.wav") for number in range(200)]


@pytest.mark.thorough
def test_predict_is_interrupted_with_one_line(checkpoint, files, tmp_path):
    out = tmp_path / "out.jsonl"
    with started(script(tmp_path, 3.0), "predict", checkpoint, files, f"--out={out}", "--workers=1") as process:
        wait_for(lambda: list(Path(f"{out}.parts").glob("0*.json")))
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
    assert (process.returncode, said) == (
        130,
        "ser-fast: interrupted; the same command resumes after the last whole part\n",
    )


def torchrun(path: Path, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", path, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


@pytest.mark.thorough
def test_predict_shares_parts_between_two_ranks(checkpoint, files, tmp_path):
    """To the byte what one process writes; also resumed by one after two."""
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    predict(script(tmp_path), "predict", checkpoint, files, f"--out={one}")
    shared = torchrun(script(tmp_path), "predict", checkpoint, files, f"--out={two}")
    assert shared.stdout.count(f"{two}: 200 rows of 200 files") == 1
    assert shared.stderr.count("1 of 200 files could not be predicted") == 1, shared.stderr
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.thorough
def test_predict_under_torchrun_refuses_once(checkpoint, files):
    refused = torchrun(Path("-m"), "ser_fast", "predict", checkpoint, files)
    assert refused.returncode != 0 and refused.stdout == ""
    assert refused.stderr.count("ser-fast: out is missing under torchrun; it must be given\n") == 1, refused.stderr
    assert refused.stderr.count("ser-fast: ") == 1


@pytest.mark.thorough
def test_predict_under_torchrun_ends_with_the_first_error(checkpoint, files, tmp_path):
    """The second part, which the second process takes, has changed since the first run."""
    out = tmp_path / "out.csv"
    with started(script(tmp_path, 0.3), "predict", checkpoint, files, f"--out={out}", "--workers=0") as process:
        wait_for(lambda: len(list(Path(f"{out}.parts").glob("0*.json"))) >= 2)
        process.kill()
    (files / "0025.wav").rename(files / "0025b.wav")
    refused = torchrun(script(tmp_path), "predict", checkpoint, files, f"--out={out}")
    changed = f"the listing changed after 25 files: '{files / '0025b.wav'}', before '{files / '0025.wav'}'"
    assert refused.returncode != 0 and refused.stderr.count(changed) == 1, refused.stderr
    assert not out.exists()

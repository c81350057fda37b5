"""Ray on this machine: the same output as in one process, also if one of its processes is killed."""

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

pytest.importorskip("ray.data")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

# 2 cores, so that one actor predicts while one task reads; parts of 64 files, so that there are several.
SCRIPT = """
import sys
from pathlib import Path
from ser_fast.prediction import config, parts, ray_engine
from ser_fast.prediction.run import run
ray_engine.cores = lambda: 2
parts.FILES = 64
checkpoint, listing, out, engine, full, at_once = sys.argv[1:]

ray_engine._PARTS_AT_ONCE = int(at_once)

def progress(files, seconds):
    print("files", files, flush=True)
    if files >= int(full):
        raise OSError(28, "No space left on device")

given = config.PredictConfig(checkpoint, [listing], Path(out), "cpu", segment=0.2, engine=engine, workers=1)
outcome = run(given, print, progress)
print("now", outcome.now.files, "whole", outcome.whole.files, outcome.whole.failed)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "a.safetensors"
    torch.manual_seed(0)
    options = {"channels": (4, 4), "hidden_size": 8}
    weights = MODELS["cgru"](3, **options).state_dict()
    save_checkpoint(path, Checkpoint("cgru", options, ["x", "y", "z"], weights, {}))
    return path


@pytest.fixture(scope="module")
def listing(tmp_path_factory) -> Path:
    """A list of 200 short files with relative names, of which one is damaged and one is missing."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(199):
        soundfile.write(folder / f"{number:03}.wav", 0.1 * torch.randn(4000 + 100 * number).numpy(), 16000)
    (folder / "100.wav").write_text("no audio")
    (folder / "list.txt").write_text("".join(f"{number:03}.wav\n" for number in range(200)))
    return folder / "list.txt"


class Run:
    """A run in a process of its own, whose Ray processes are known by a variable in their environment."""

    def __init__(self, checkpoint: Path, listing: Path, out: Path, engine: str, full: int = 1000, at_once: int = 9):
        self.mark = f"SER_FAST_RAY_TEST={out}"
        name, value = self.mark.split("=")
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            str(checkpoint),
            listing.name,
            str(out),
            engine,
            str(full),
            str(at_once),
        ]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {name: value}
        self.process = subprocess.Popen(
            command, cwd=listing.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def processes(self, title: str = "") -> set[int]:
        """Return the ids of its processes whose title begins so, but for the first."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                if marked and (folder / "cmdline").read_bytes().startswith(title.encode()):
                    found.add(int(folder.name))
            except OSError:  # it has ended
                continue
        return found - {self.process.pid}

    def wait_for(self, title: str, but: int = 0) -> int:
        """Return the id of a process with this title, which may still have to start."""
        end = time.monotonic() + 60
        while not (found := self.processes(title) - {but}):
            assert time.monotonic() < end and self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return min(found)

    def files(self, least: int) -> None:
        """Wait until this many files are done."""
        for line in self.process.stdout:
            if line.startswith("files") and int(line.split()[1]) >= least:
                return
        raise AssertionError(self.process.communicate())

    def end(self) -> str:
        """Return the last line of the run; it must succeed."""
        out, error = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, error
        return out.splitlines()[-1]


@pytest.fixture(scope="module")
def expected(checkpoint, listing, tmp_path_factory) -> bytes:
    """The output of one process."""
    out = tmp_path_factory.mktemp("local") / "out.parquet"
    assert Run(checkpoint, listing, out, "local").end() == "now 200 whole 200 2"
    return out.read_bytes()


@pytest.mark.parametrize("victim", ["ray::MapWorker", "ray::FlatMap"])
def test_ray_survives_a_killed_process(checkpoint, listing, expected, tmp_path, victim):
    """SIGKILL to the actor in the middle, or to the first task that reads: the same bytes as in one process."""
    run = Run(checkpoint, listing, tmp_path / "out.parquet", "ray")
    if victim == "ray::MapWorker":
        run.files(16)
    first = run.wait_for(victim)
    os.kill(first, signal.SIGKILL)
    run.wait_for(victim, but=first)
    assert run.end() == "now 200 whole 200 2"
    assert (tmp_path / "out.parquet").read_bytes() == expected
    assert parquet.read_table(tmp_path / "out.parquet")["file"].to_pylist()[-1] == "199.wav"


def test_ray_resumes_after_a_kill(checkpoint, listing, expected, tmp_path):
    """SIGKILL to the driver ends all of Ray; the same command makes the missing parts, two at a time."""
    out = tmp_path / "out.parquet"
    run = Run(checkpoint, listing, out, "ray")
    run.files(80)
    run.process.kill()
    run.process.communicate()
    end = time.monotonic() + 60
    # Two agents of Ray, which hold no memory of ours, end a minute later.
    while run.processes("ray::FlatMap") | run.processes("ray::MapWorker"):
        assert time.monotonic() < end, "workers of Ray are left"
        time.sleep(0.1)
    assert not out.exists()
    assert Run(checkpoint, listing, out, "ray", at_once=2).end() == "now 136 whole 200 2"
    assert out.read_bytes() == expected


def test_ray_failure_is_one_sentence(checkpoint, listing, tmp_path):
    """The model cannot be loaded in an actor."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(checkpoint.read_bytes())
    run = Run(copy, listing, tmp_path / "out.parquet", "ray")
    run.wait_for("ray::")
    copy.unlink()
    _, error = run.process.communicate(timeout=600)
    assert run.process.returncode == 1 and "finished parts are safe, and the same command resumes" in error


def test_ray_stops_on_a_full_disk(checkpoint, listing, expected, tmp_path):
    """An error of the driver ends Ray, which is not started anew by a thread that still runs."""
    run = Run(checkpoint, listing, tmp_path / "out.parquet", "ray", full=80)
    _, error = run.process.communicate(timeout=600)
    assert run.process.returncode == 1 and "No space left on device; the 64 files of 1 finished part" in error
    assert "Started a local Ray" not in error


def test_ray_command_of_the_docs(checkpoint, listing, tmp_path):
    """A list in Parquet with names relative to its folder, which is not that of the processes of Ray."""
    page = (Path(__file__).parents[2] / "docs/prediction.md").read_text()
    (command,) = (
        line for line in page.splitlines() if line.startswith("ser-fast predict") and "--engine=ray" in line
    )
    arrow = pytest.importorskip("pyarrow")
    names = [name for name in listing.read_text().split() if name != "100.wav" and name != "199.wav"]
    parquet.write_table(arrow.table({"path": names}), listing.with_name("list.parquet"))
    words = (
        command.replace("runs/emodb", str(checkpoint)).replace("results.parquet", str(tmp_path / "a.jsonl")).split()
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    run = [sys.executable, "-m", "ser_fast", *words[1:]]
    subprocess.run(run, cwd=listing.parent, env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == names and not any(row["error"] for row in rows)
    assert rows[0].keys() >= {"label", "p_x", "p_y", "p_z"}

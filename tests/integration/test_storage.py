"""Processes that share, are killed, or run out of disk while a corpus is read."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_fast.data.corpora import load_corpus
from ser_fast.data.dataset import load_dataset
from ser_fast.data.storage import Storage

SCRIPT = """
import sys, time
from ser_fast.data import cache
from ser_fast.data.dataset import load_dataset
from ser_fast.data.storage import Storage

read, data, folder = cache.read_utterance, *sys.argv[1:]
cache.read_utterance = lambda *given: (time.sleep(0.02), read(*given))[1]
dataset = load_dataset(data, 16000, report=lambda line: print(line, flush=True), storage=Storage("disk", folder))
print(dataset.digest(), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """60 files of noise of 2 classes and 3 speakers, 1.2 MB as int16."""
    root = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    for number in range(60):
        folder = root / "ab"[number % 2] / f"s{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.flac", draw.uniform(-0.1, 0.1, 10_000 + number), 16000)
    return f"folders:{root}"


def started(*arguments, **options) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, arguments)], stdout=pipe, stderr=pipe, text=True, **options)


def command(data: str, out: Path, **options) -> list[str]:
    given = {"model": "cgru", "cgru.channels": "[4,4]", "cgru.hidden_size": 8, "test_speakers": "s2", "data": data}
    return [
        "-m",
        "ser_fast",
        "train",
        *(f"--{name}={value}" for name, value in {**given, "out": out, **options}.items()),
    ]


def children(process: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    return []


def alive(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def expected(data: str) -> tuple[str, int]:
    """Return the digest of the corpus and the bytes of its cache."""
    dataset = load_dataset(data, 16000, storage=Storage("memory"))
    return dataset.digest(), 2 * sum(dataset.lengths)


def test_two_processes_make_one_cache(data, tmp_path):
    both = [started("-c", SCRIPT, data, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    digest, size = expected(data)
    (folder,) = tmp_path.iterdir()
    assert said[0][-1] == said[1][-1] == digest and (folder / "waves").stat().st_size == size
    assert sorted(path.name for path in folder.iterdir()) == ["index", "lock", "waves"]
    assert sum(any("waiting for another process" in line for line in lines) for lines in said) <= 1


def test_killed_process_leaves_a_cache_that_resumes(data, tmp_path):
    process = started("-c", SCRIPT, data, tmp_path)
    wait_for(lambda: sum(path.read_text().count("\n") for path in tmp_path.glob("*/making")) >= 10)
    process.kill()
    process.communicate()
    lines = []
    dataset = load_dataset(data, 16000, report=lines.append, storage=Storage("disk", tmp_path))
    (folder,) = tmp_path.iterdir()
    assert (dataset.digest(), (folder / "waves").stat().st_size) == expected(data)
    done = int(lines[1].removeprefix("resuming after ").removesuffix(" of 60 utterances"))
    assert 10 <= done < 60
    whole = load_dataset(load_corpus(data), 16000, storage=Storage("memory"))
    assert all((wave == other).all() for wave, other in zip(dataset.waves, whole.waves, strict=True))


@pytest.mark.thorough
def test_full_disk_ends_in_one_sentence(data, tmp_path):
    limited = (
        "import resource, sys; from ser_fast.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); sys.exit(main(sys.argv[1:]))"
    )
    words = command(data, tmp_path / "run", cache="disk", cache_dir=tmp_path / "cache", epochs=1)[2:]
    process = started("-c", limited, *words)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and said.count("\n") == 1 and not (tmp_path / "run").exists()
    assert said.startswith(
        f"ser-fast: cache_dir is {tmp_path}/cache, where the disk is full: about 1 MB more are needed."
    )
    process = started("-m", "ser_fast", *words)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == "" and "resuming after 24 of 60 utterances" in output


@pytest.mark.thorough
def test_workers_end_with_their_run(data, tmp_path):
    """However the run ends, none of its processes is left, and the same command resumes at once."""
    words = command(data, tmp_path / "run", cache="none", workers=2, epochs=500, validation="none")
    for number in (signal.SIGKILL, signal.SIGINT):
        process = started(*words)
        wait_for(lambda process=process: process.poll() is not None or len(children(process.pid)) == 2)
        workers = children(process.pid)
        wait_for((tmp_path / "run/last.safetensors").is_file)
        wait_for(lambda process=process: process.poll() is not None or len(children(process.pid)) == 2)
        workers += children(process.pid)
        os.kill(process.pid, number)
        output, said = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), said
        assert workers
        wait_for(lambda workers=workers: not any(map(alive, workers)), 3)
    assert "resuming after epoch" in output and said.startswith("ser-fast: interrupted; the same command resumes")

"""``ser-fast train`` is killed and run again: the files are whole, and the result is that of an uninterrupted run.

Each training runs in a fork of the attack's process, which has imported everything. It kills itself before the n-th
file that it opens, renames, makes or removes, which a repeated case does at the same place, or is killed after a random
time, which is not exactly the same in a repeated case.
"""

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from run import TINY, command, removed, trained, voices
from safetensors.torch import load_file

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
EPOCHS = 3
SECONDS = 60  # that no training takes


@dataclass
class Case:
    folder: Path
    moments: list[tuple[str, float]]  # ("events", number) or ("seconds", number), of one run after the other

    def __str__(self) -> str:
        return "killed after " + ", then ".join(f"{number:.3g} {kind}" for kind, number in self.moments)


whole: dict[Path, tuple[int, float]] = {}  # events and seconds of an uninterrupted run


def case(random: Random, folder: Path) -> Case:
    if folder not in whole:
        trained(folder)  # imports what a training imports, so that the forks do not
        began = time.monotonic()
        assert forked(folder, "whole", "seconds", SECONDS) == 0, (folder / "errors").read_text()
        whole[folder] = int((folder / "events").read_text()), time.monotonic() - began
    events, seconds = whole[folder]
    kinds = random.choices(("events", "seconds"), k=random.randint(1, 3))
    return Case(folder, [(kind, random.randrange(1, events + 1) if kind == "events" else random.random() * seconds)
                         for kind in kinds])  # fmt: skip


def forked(folder: Path, name: str, kind: str, number: float) -> int:
    """Train in a fork that is killed at this moment, and return its status."""
    out, data = folder / name, voices(folder)
    process = os.fork()
    if process == 0:
        try:
            if kind == "seconds":
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                signal.setitimer(signal.ITIMER_REAL, max(number, 1e-3))
            count = kill_before(number if kind == "events" else float("inf"), str(out))
            code, _, errors = command("train", f"--data=folders:{data}", f"--out={out}", f"--epochs={EPOCHS}", *TINY)
            (folder / "events").write_text(str(count[0]))
        except BaseException:
            code, errors = 70, traceback.format_exc()
        (folder / "errors").write_text(errors)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_before(number: float, out: str) -> list[int]:
    """Kill this process before the n-th change of a file of the run; return a list of the count so far."""
    count = [0]

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(out):
            count[0] += 1
            if count[0] >= number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def check(case: Case) -> None:
    out = case.folder / "parts"
    removed(out)
    for kind, number in case.moments:
        code = forked(case.folder, "parts", kind, number)
        assert code in (0, -signal.SIGKILL), f"exit status {code}: {(case.folder / 'errors').read_text()[:1000]}"
        assert_whole(out)
    code = forked(case.folder, "parts", "seconds", SECONDS)
    assert code == 0, f"the run does not resume, exit status {code}: {(case.folder / 'errors').read_text()[:1000]}"
    assert_whole(out)
    assert not [path for path in out.rglob("*.tmp")], "a temporary file is left"
    assert_same(case.folder / "whole", out)


def assert_whole(out: Path) -> None:
    """Fail if a file of a run is half written."""
    for path in out.rglob("*"):
        try:
            if path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                metrics(path)
            elif path.suffix in (".png", ".html", ".csv"):
                assert path.stat().st_size > 30
        except Exception as error:
            raise AssertionError(f"{path.name} is half written: {error!r}") from error


def metrics(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def assert_same(one: Path, other: Path) -> None:
    files, others = ({str(path.relative_to(each)) for path in each.rglob("*")} for each in (one, other))
    assert files == others, f"files differ: {files ^ others}"
    assert metrics(one / "metrics.jsonl") == metrics(other / "metrics.jsonl"), "metrics.jsonl differs"
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes(), (
        "predictions.csv differs"
    )
    first, second = (json.loads((each / "summary.json").read_text()) for each in (one, other))
    assert (first["best"], first["last"]) == (second["best"], second["last"]), "summary.json differs"
    for name in ("best.safetensors", "last.safetensors"):
        tensors, twins = load_file(one / name), load_file(other / name)
        assert tensors.keys() == twins.keys(), name
        assert all(torch.equal(value, twins[key]) for key, value in tensors.items()), f"{name} differs"

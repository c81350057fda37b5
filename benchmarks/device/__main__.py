"""Acceptance run on a GPU, in at most ten minutes: ``python -m benchmarks.device --out FOLDER``, from the root.

It installs a wheel (the newest in ``dist/``, or ``--wheel``) beside the environment's torch; if that fails, it builds
ser_fast here and reports so. Then it tests the kernels and measures them, part by part, each part in its own process:
a part that fails, hangs or exceeds its time does not affect the others. ``FOLDER/run.json`` is rewritten after every
part, so an interrupted run keeps its results; ``--part`` repeats single parts. ``run.md`` and ``run.png`` are the
report, ``log.txt`` is the output of the parts.

``--rehearse`` runs everything on the CPU at small sizes; its times are meaningless.

This file uses the standard library only: ser_fast must be imported from the installation, not from the sources.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Parts in order, with their share of the ten minutes in seconds.
PARTS = {
    "tests": 150,
    "sanitizer": 70,
    "recurrence": 50,
    "gru": 100,
    "pool": 35,
    "spectrogram": 15,
    "models": 55,
    "epochs": 75,
}
ON_REQUEST = ("plans", "papers")  # run only with --part, and may take all the time
MINUTES = 10
REPORT = 20  # seconds reserved for the report
LOST = 3  # exit status of a part whose process can no longer use the device
SAME = ("gpu", "torch")  # must be equal for all parts of a run
GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@dataclass
class Workspace:
    """Folders of the run, and the functions that start a process in them.

    Args:
        out: folder of the results.
        site: folder in which ser_fast is installed.
        arguments: options passed to every part.
    """

    out: Path
    site: Path
    arguments: list[str]

    def environment(self) -> dict[str, str]:
        """Return the environment of a part, with the installed ser_fast first on the path."""
        paths = [str(self.site), os.environ.get("PYTHONPATH", "")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    def call(self, command: list[str], seconds: float, where: Path = ROOT / "benchmarks") -> tuple[int | None, str]:
        """Run a command, with its output in the log; return its exit status (None on timeout) and its last lines."""
        with open(self.out / "log.txt", "a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n== {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=where,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end(process)
            log.seek(start)
            return code, "".join(log.readlines()[-40:])

    def describe(self, path: Path) -> tuple[int | None, str]:
        """Write a description of the machine to ``path``; the exit status is 0 if it can be measured."""
        return self.call([sys.executable, "-m", "device.part", "machine", "--out", str(path), *self.arguments], 120)


def end(process: subprocess.Popen) -> None:
    """Kill the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def install(workspace: Workspace, wheel: Path | None, described: Path) -> dict:
    """Install the wheel, or what is built here if that fails; ``described`` is the file for ``Workspace.describe``.

    Raises:
        SystemExit: if building failed as well.
    """
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(workspace.site)]
    why = "there is no wheel in dist/"
    if wheel:
        code, last = workspace.call([*pip, "--no-index", str(wheel)], 60)
        if code == 0:
            code, last = workspace.describe(described)
        if code == 0:
            return {"how": f"the wheel {wheel.name}, as it is"}
        why = f"the wheel {wheel.name} failed: {last.strip()}"
    print(f"{why}\nbuilding here instead", flush=True)
    described.unlink(missing_ok=True)
    code, last = workspace.call([*pip, "--no-build-isolation", str(ROOT)], 300)
    if code == 0:
        code, last = workspace.describe(described)
    if code:
        raise SystemExit(f"building here failed as well:\n{last}")
    return {"how": f"built here, because {why}"}


def newest_wheel() -> Path | None:
    """Return the newest wheel in ``dist/``, or None."""
    wheels = sorted((ROOT / "dist").glob("**/ser_fast-*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1] if wheels else None


def lines(path: Path) -> list[dict]:
    """Return the cases that a part has written; an incomplete last line is dropped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def run_part(name: str, workspace: Workspace, seconds: float) -> dict:
    """Run a part; return its cases and its state: passed, failed, cut short (time ran out) or not run."""
    if seconds < 10:
        return {"state": "not run", "error": "no time was left", "cases": []}
    path = workspace.out / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    start, found, code, last, lost = time.monotonic(), [], None, "", True
    # If a case ended the process or made the device unusable, a new process continues with the next case.
    while lost and (left := seconds - (time.monotonic() - start)) > 10:
        command = [sys.executable, "-m", "device.part", name, "--out", str(path), "--seconds", f"{left:.0f}"]
        command += ["--first", str(1 + max((case["number"] for case in found), default=-1))]
        code, last = workspace.call([*command, *workspace.arguments], left + 5)
        new = ended(lines(path), code, last)
        path.unlink(missing_ok=True)
        found += new
        lost = bool(new) and code is not None and (code == LOST or code < 0)
    states = [case.get("state") for case in found]
    result = {"state": "failed" if code or "failed" in states else "passed"}
    if result["state"] == "passed" and (code is None or "not run" in states):
        result["state"] = "cut short"
    if code is None:
        result["error"] = "ended, because its time ran out"
    elif code and "failed" not in states:
        result["error"] = last
    return result | {"seconds": time.monotonic() - start, "cases": found}


def ended(found: list[dict], code: int | None, last: str) -> list[dict]:
    """Return the cases with their final state; one that only began was cut short or ended the process."""
    done = {case["number"] for case in found if case.get("state") != "begun"}
    end = {"state": "failed", "error": f"it ended the process: {last}"}
    if code is None:
        end = {"state": "not run", "error": "its time ran out"}
    open_cases = [case | end for case in found if case["number"] not in done]
    return [case for case in found if case.get("state") != "begun"] + open_cases


def write(path: Path, run: dict) -> None:
    """Write the run atomically."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{json.dumps(run, indent=1)}\n", encoding="utf-8")
    fresh.replace(path)


def summary(name: str, part: dict) -> str:
    """Return a line about a part, and lines about what failed in it."""
    states = [case.get("state", "passed") for case in part["cases"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    found = [f"{name}: {part['state']} in {part.get('seconds', 0):.0f} s; cases: {counts or 'none'}"]
    failed = [case for case in part["cases"] if case.get("state") == "failed"]
    found += [f"  {case['case']}: {''.join(case.get('error', '').strip().splitlines()[-1:])}" for case in failed[:20]]
    return "\n".join([*found, *part.get("error", "").splitlines()[-20:]])


def parse_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--part",
        choices=[*PARTS, *ON_REQUEST],
        action="append",
        default=[],
        help="run only this part; may be given several times. plans and papers run only this way",
    )
    parser.add_argument(
        "--wheel", type=Path, default=newest_wheel(), help="wheel to install; by default the newest in dist/"
    )
    parser.add_argument("--installed", action="store_true", help="install nothing, measure the installed ser_fast")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of the whole run")
    parser.add_argument("--data", type=Path, help="folder of Emo-DB, for the parts epochs and papers")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="program, if not the one on PATH")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU with small sizes")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    if options.wheel and not options.wheel.is_file():
        parser.error(f"--wheel is {options.wheel}; it must be a file")
    if options.data and not options.data.is_dir():
        parser.error(f"--data is {options.data}; it must be the folder of Emo-DB")
    return options


def prepare(options: argparse.Namespace, site: Path) -> tuple[Workspace, dict]:
    """Install ser_fast; return the workspace, and the run so far with the description of this machine.

    Raises:
        SystemExit: if there is no GPU, the kernels do not load, or ``--out`` holds the run of another machine.
    """
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = ["--data", str(options.data.resolve())] if options.data else []
    workspace = Workspace(out, site, ["--sanitizer", options.sanitizer, *(["--rehearse"] * options.rehearse), *data])
    if not options.rehearse and workspace.call([sys.executable, "-c", GPU], 60)[0] != 0:
        raise SystemExit("there is no GPU that torch can see; --rehearse tries the run without one")
    described = out / "machine.jsonl"
    described.unlink(missing_ok=True)
    if options.installed:
        installed = {"how": "nothing; the ser_fast that was already installed is measured"}
        workspace.describe(described)
    else:
        installed = install(workspace, options.wheel, described)
    found = (lines(described) or [{}])[-1]
    if "gpu" not in found:
        raise SystemExit(f"nothing can be measured here: {found.get('error', 'log.txt says why')}")
    described.unlink()
    machine = {name: value for name, value in found.items() if name not in ("case", "number")}
    path = out / "run.json"
    run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
    before = run.get("machine", machine)
    if any(before[name] != machine[name] for name in SAME):
        raise SystemExit(
            f"--out is {options.out}, which holds a run of {before['gpu']}, torch {before['torch']}; "
            "it must be a folder of its own"
        )
    about = f"{machine['gpu']}, torch {machine['torch']}, commit {machine['commit']}"
    print(f"{about}; installed: {installed['how']}", flush=True)
    return workspace, run | {"machine": machine, "install": installed, "rehearsal": options.rehearse}


def main() -> int:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="ser_fast-") as site:
        return run_all(options, Path(site))


def run_all(options: argparse.Namespace, site: Path) -> int:
    """Run the parts, then the report; return 1 if anything failed."""
    start = time.monotonic()
    workspace, run = prepare(options, site)
    path, names = workspace.out / "run.json", options.part or list(PARTS)
    left = 60 * options.minutes - REPORT
    for position, name in enumerate(names):
        # Time that earlier parts saved or overran is distributed over the remaining ones.
        wanted = [PARTS.get(each) or left for each in names[position:]]
        part = run_part(name, workspace, (left - (time.monotonic() - start)) * wanted[0] / sum(wanted))
        run["parts"][name] = part | {"commit": run["machine"]["commit"], "date": datetime.date.today().isoformat()}
        write(path, run)
        print(summary(name, part), flush=True)
    code, last = workspace.call([sys.executable, "-m", "device.report", str(path)], 60)
    print(path.with_suffix(".md") if code == 0 else f"the report failed:\n{last}", flush=True)
    return int(code != 0 or any(run["parts"][name]["state"] == "failed" for name in names))


if __name__ == "__main__":
    sys.exit(main())

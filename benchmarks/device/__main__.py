"""The acceptance run on a GPU, in at most ten minutes: ``python -m benchmarks.device --out FOLDER``, from the root.

It installs the wheel that was built elsewhere (the newest in ``dist/``, or ``--wheel``) beside the environment's own
torch, as it is, and where that fails builds ser_fast here and says so. Then it proves the kernels and measures them,
part by part, each in a process of its own: one that fails, hangs or runs out of its time takes no other with it.
``FOLDER/run.json`` is rewritten after every part, so that an interrupted run keeps what it has, and ``--part`` names
those that are to be repeated alone. ``run.md`` and ``run.png`` show it; ``log.txt`` is what the parts printed.

``--rehearse`` tries all of it without a GPU, at small sizes on the CPU: its times mean nothing.

This file needs the standard library alone, since ser_fast must not be imported from the sources.
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
# Seconds of ten minutes that each part may take, in the order in which they run.
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
ASKED = ("plans", "papers")  # run only by their names, and take all the time there is
MINUTES = 10
LAST = 20  # seconds that the tables and the figure may take
LOST = 3  # exit status of a part that a case has taken the device from
SAME = ("gpu", "torch")  # what all parts of a run must have met
GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@dataclass
class Place:
    """Where everything lies, and how a part is started."""

    out: Path
    site: Path
    arguments: list[str]

    def environment(self) -> dict[str, str]:
        """The installed ser_fast goes before the sources, which the working folder keeps out."""
        paths = [str(self.site), os.environ.get("PYTHONPATH", "")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    def call(self, command: list[str], seconds: float, where: Path = ROOT / "benchmarks") -> tuple[int | None, str]:
        """A command's exit status, None where it was ended for its time, and its last lines; all go to the log."""
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
        """What the installed ser_fast says of this machine, into ``path``; fails where it cannot be measured."""
        return self.call([sys.executable, "-m", "device.part", "machine", "--out", str(path), *self.arguments], 120)


def end(process: subprocess.Popen) -> None:
    """The process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def install(place: Place, wheel: Path | None, described: Path) -> dict:
    """Into a folder of its own: the wheel as it is, else what is built here; ``described`` says what then loads."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(place.site)]
    why = "there is no wheel in dist/"
    if wheel:
        code, last = place.call([*pip, "--no-index", str(wheel)], 60)
        if code == 0:
            code, last = place.describe(described)
        if code == 0:
            return {"how": f"the wheel {wheel.name}, as it is"}
        why = f"the wheel {wheel.name} failed: {last.strip()}"
    print(f"{why}\nbuilding here instead", flush=True)
    described.unlink(missing_ok=True)
    code, last = place.call([*pip, "--no-build-isolation", str(ROOT)], 300)
    if code == 0:
        code, last = place.describe(described)
    if code:
        raise SystemExit(f"building here failed as well:\n{last}")
    return {"how": f"built here, because {why}"}


def newest_wheel() -> Path | None:
    wheels = sorted((ROOT / "dist").glob("**/ser_fast-*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1] if wheels else None


def lines(path: Path) -> list[dict]:
    """What a part has written so far; the last line may be cut."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def run_part(name: str, place: Place, seconds: float) -> dict:
    """The part's cases and its state: passed, failed, cut short where time ran out, or not run."""
    if seconds < 10:
        return {"state": "not run", "error": "no time was left", "cases": []}
    path = place.out / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    start, found, code, last, lost = time.monotonic(), [], None, "", True
    # A process that a case has ended, or broken, is followed by one that begins with the next case.
    while lost and (left := seconds - (time.monotonic() - start)) > 10:
        command = [sys.executable, "-m", "device.part", name, "--out", str(path), "--seconds", f"{left:.0f}"]
        command += ["--first", str(1 + max((case["number"] for case in found), default=-1))]
        code, last = place.call([*command, *place.arguments], left + 5)
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
    """The cases by their ends; one that has only begun was cut short, or ended the process."""
    done = {case["number"] for case in found if case.get("state") != "begun"}
    end = {"state": "failed", "error": f"it ended the process: {last}"}
    if code is None:
        end = {"state": "not run", "error": "its time ran out"}
    open_cases = [case | end for case in found if case["number"] not in done]
    return [case for case in found if case.get("state") != "begun"] + open_cases


def write(path: Path, run: dict) -> None:
    """Whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{json.dumps(run, indent=1)}\n", encoding="utf-8")
    fresh.replace(path)


def said(name: str, part: dict) -> str:
    """A part in a line, and what failed in it."""
    states = [case.get("state", "passed") for case in part["cases"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    found = [f"{name}: {part['state']} in {part.get('seconds', 0):.0f} s; cases: {counts or 'none'}"]
    failed = [case for case in part["cases"] if case.get("state") == "failed"]
    found += [f"  {case['case']}: {''.join(case.get('error', '').strip().splitlines()[-1:])}" for case in failed[:20]]
    return "\n".join([*found, *part.get("error", "").splitlines()[-20:]])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--part",
        choices=[*PARTS, *ASKED],
        action="append",
        default=[],
        help="repeat this part alone, as often as wanted; plans and papers run only so",
    )
    parser.add_argument("--wheel", type=Path, default=newest_wheel(), help="by default the newest in dist/")
    parser.add_argument(
        "--installed", action="store_true", help="install nothing, measure the ser_fast that is there"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that all of it may take")
    parser.add_argument("--data", type=Path, help="folder of Emo-DB, for the parts epochs and papers")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="the program, if it is not to be PATH's")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, small, on the CPU")
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    if options.wheel and not options.wheel.is_file():
        parser.error(f"--wheel is {options.wheel}; it must be a file")
    if options.data and not options.data.is_dir():
        parser.error(f"--data is {options.data}; it must be the folder of Emo-DB")
    return options


def prepare(options: argparse.Namespace, site: Path) -> tuple[Place, dict]:
    """The folder, ser_fast in it, and the run so far with the machine that this call finds.

    Raises:
        SystemExit: there is no GPU, the kernels do not load, or the folder is another machine's.
    """
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = ["--data", str(options.data.resolve())] if options.data else []
    place = Place(out, site, ["--sanitizer", options.sanitizer, *(["--rehearse"] * options.rehearse), *data])
    if not options.rehearse and place.call([sys.executable, "-c", GPU], 60)[0] != 0:
        raise SystemExit("there is no GPU that torch can see; --rehearse tries the run without one")
    described = out / "machine.jsonl"
    described.unlink(missing_ok=True)
    if options.installed:
        installed = {"how": "nothing: measured is the ser_fast that was there"}
        place.describe(described)
    else:
        installed = install(place, options.wheel, described)
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
    return place, run | {"machine": machine, "install": installed, "rehearsal": options.rehearse}


def main() -> int:
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="ser_fast-") as site:
        return run_all(options, Path(site))


def run_all(options: argparse.Namespace, site: Path) -> int:
    """Every part that is wanted, then the tables; 1 if something failed."""
    start = time.monotonic()
    place, run = prepare(options, site)
    path, names = place.out / "run.json", options.part or list(PARTS)
    left = 60 * options.minutes - LAST
    for position, name in enumerate(names):
        # What earlier parts have left over, or taken too much of, is shared out among the others.
        wanted = [PARTS.get(each) or left for each in names[position:]]
        part = run_part(name, place, (left - (time.monotonic() - start)) * wanted[0] / sum(wanted))
        run["parts"][name] = part | {"commit": run["machine"]["commit"], "date": datetime.date.today().isoformat()}
        write(path, run)
        print(said(name, part), flush=True)
    code, last = place.call([sys.executable, "-m", "device.report", str(path)], 60)
    print(path.with_suffix(".md") if code == 0 else f"the report failed:\n{last}", flush=True)
    return int(code != 0 or any(run["parts"][name]["state"] == "failed" for name in names))


if __name__ == "__main__":
    sys.exit(main())

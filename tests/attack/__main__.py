"""Attack ser_fast with random cases: ``python tests/attack --seconds=120 --seed=1 [NAME ...]``.

An attack is a module of this folder with two functions. ``case(random, folder)`` makes case number n from a generator
that is seeded by seed, attack and n. ``check(case)`` raises an error if the attacked property does not hold. Cases run in a
child process, so that a crash, a hang or too much memory is reported with its case too. Every failure is printed with
the command that repeats it.
"""

import argparse
import datetime
import faulthandler
import importlib
import json
import os
import platform
import random
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = ("ops", "sanitized", "audio", "checkpoints", "configs", "names", "kills")
SETS = ("portable", "avx2", "avx512", "avx512_bf16")  # instruction sets of kernels/simd.cpp
START = 180  # seconds that a child may take before its first case
MEMORY = 600  # megabytes that a case may add
ADDRESSES = 12 << 30  # bytes of addresses that a child may take, so that no case harms the machine


class Part(NamedTuple):
    """One attack on one instruction set; ``sanitized`` is ``ops`` under the sanitizers."""

    attack: str
    cpu: str = ""

    def __str__(self) -> str:
        return ":".join(filter(None, self))

    def environment(self) -> dict[str, str]:
        found = os.environ | {"OMP_WAIT_POLICY": "passive"} | ({"SER_FAST_CPU": self.cpu} if self.cpu else {})
        if self.attack == "sanitized":
            import sanitized

            found |= sanitized.environment()
        return found


class Result(NamedTuple):
    part: Part
    cases: int
    failures: int
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser("tests/attack", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", help=f"{', '.join(ATTACKS)} (all by default); ops:avx2 is one of its sets"
    )
    parser.add_argument("--seconds", type=float, default=120, help="of all attacks together on all cores")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="number of the only case to run")
    parser.add_argument("--limit", type=float, default=20, help="seconds that a case may take, on a busy machine too")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # cases have hostile names
    if options.child is not None:
        return child(options.names[0], options.seed, options.case, options.child)
    parts = [part for name in options.names or ATTACKS for part in parts_of(name)]
    if any(part.attack == "sanitized" for part in parts):
        import sanitized

        sanitized.build()
    jobs = 1 if options.case is not None else min(os.cpu_count() or 1, len(parts))
    share = options.seconds * jobs / len(parts)
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda part: attack(part, options, share), parts))
    print(table(results, options.seed))
    return int(any(result.failures for result in results))


def parts_of(name: str) -> list[Part]:
    """Return the parts of an attack: ``ops`` has one for each instruction set of the processor."""
    attack, _, cpu = name.partition(":")
    if attack != "ops" or cpu:
        return [Part(attack, cpu)]
    script = "from ser_fast import backends; print(backends.instruction_set)"
    best = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    return [Part(attack, cpu) for cpu in SETS[: SETS.index(best) + 1]] if best in SETS else [Part(attack)]


def attack(part: Part, options: argparse.Namespace, seconds: float) -> Result:
    """Run cases for so many seconds, or the only one, and print the failures."""
    began, seed, only = time.time(), options.seed, options.case
    until = began + (seconds if only is None else 0)
    number, cases, failed = only or 0, 0, []
    while cases == 0 or time.time() < until:
        for message in conversation(part, seed, number, until, options.limit):
            if "case" in message:
                cases += 1
                number, case = message["number"] + 1, message["case"]
            elif message["why"]:
                failed.append(number - 1)
                repeat = f"python tests/attack --seed={seed} --case={number - 1} {part}"
                print(f"FAILED {part}: {case}\n  {message['why'].rstrip()}\n  repeat: {repeat}", flush=True)
    return Result(part, cases, len(failed), time.time() - began)


def conversation(part: Part, seed: int, number: int, until: float, limit: float) -> Iterator[dict]:
    """Yield what a child reports: each ``case`` before it runs, then ``why`` it failed, "" if it did not.

    Args:
        number: number of the first case.
        until: time at which the child begins no more cases; it runs at least one.
        limit: seconds that a case may take.
    """
    command = [sys.executable, str(ROOT / "tests/attack"), part.attack, f"--seed={seed}", f"--case={number}",
               f"--child={until}"]  # fmt: skip
    with tempfile.TemporaryFile() as errors, selectors.DefaultSelector() as selector:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0, cwd=ROOT,
                                   env=part.environment())  # fmt: skip
        selector.register(process.stdout, selectors.EVENT_READ)
        patience, running, late = START, False, ""
        while True:
            if not selector.select(patience):
                late = f"no end after {patience:g} s"
                process.send_signal(signal.SIGABRT)  # faulthandler prints where it is
                process.stdout.read()
                break
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                break
            message = json.loads(line)
            patience, running = limit, "case" in message
            yield message
        code = process.wait()
        if code == 0 and not late:
            return
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - 20000))
        said = errors.read().decode(errors="replace").strip().splitlines()
        why = late or (signal.Signals(-code).name if code < 0 else f"exit status {code}")
        if not running:
            raise RuntimeError("\n".join([f"{part} failed outside its cases: {why}", *said]))
        begin = next(
            (
                place
                for place, line in enumerate(said)
                if re.search("Fatal Python error|ERROR: |runtime error:", line)
            ),
            -12,
        )
        yield {"why": "\n  ".join([why, *said[begin:][:12]])}


def child(name: str, seed: int, number: int, until: float) -> int:
    """Run cases from this number on and report them on standard output, one JSON object a line."""
    with os.fdopen(os.dup(1), "w", buffering=1) as report, tempfile.TemporaryDirectory() as folder:
        os.dup2(2, 1)  # what the cases print does not belong there
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if name != "sanitized":  # their shadow memory is terabytes of addresses
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        sys.path.append(str(ROOT / "tests"))
        module = importlib.import_module("ops" if name == "sanitized" else name)
        while True:
            generator = random.Random(f"{seed} {name} {number}")
            case = module.case(generator, Path(folder))
            print(json.dumps({"number": number, "case": str(case)}), file=report)
            before = peak(reset=True)
            why = reason(module.check, case)
            added = peak() - before
            if not why and added > MEMORY and name != "sanitized":  # the sanitizers keep freed memory
                why = f"it took {added:.0f} MB; at most {MEMORY} are allowed"
            print(json.dumps({"why": why}), file=report)
            number += 1
            if time.time() >= until:
                return 0


def reason(check, case) -> str:
    """Return why a case fails, "" if it does not."""
    try:
        check(case)
    except AssertionError as error:
        return str(error) or traceback.format_exc()
    except Exception:
        return traceback.format_exc(limit=-4)
    return ""


def peak(reset: bool = False) -> float:
    """Return the largest resident memory of this process since the last reset, in megabytes."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):  # no /proc of Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(results: list[Result], seed: int) -> str:
    """Return the results as README.md keeps them."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    machine = f"{(named or [platform.machine()])[0]}, {os.cpu_count()} cores"
    rows = [f"| `{result.part}` | {result.cases} | {result.failures} | {result.seconds:.0f} |" for result in results]
    when = f"{datetime.date.today()}, seed {seed}, {commit.stdout.strip() or 'unknown commit'}, {machine}"
    return "\n".join(["", f"{when}:", "", "| attack | cases | failures | seconds |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())

"""One part of the acceptance run: ``python -m device.part NAME --out CASES.jsonl``, started by ``device``.

Each case is appended to the file when it ends, also if it failed or did not run.
"""

import argparse
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from device import attention_pool, gru, models, power_spectrogram, proofs
from device.bench import LOST, Bench, Case, machine

PARTS: dict[str, Callable[[Bench], list[Case]]] = {
    "machine": lambda bench: [Case("machine", lambda: machine(bench))],
    **{part.__name__: part for part in (proofs.tests, proofs.sanitizer)},
    **{
        part.__name__: part
        for part in (gru.recurrence, gru.gru, gru.plans, attention_pool.pool, power_spectrogram.spectrogram)
    },
    **{part.__name__: part for part in (models.models, models.epochs, models.papers)},
}
PARALLEL = ("tests", "sanitizer")  # parts without timing, whose cases run in parallel
LIMITS = {"epochs": 600, "papers": 600, "models": 150}  # seconds per case
LIMIT = 60  # seconds per case of the other parts


class Log:
    """File of a part's cases, one JSON object per line, written by several threads."""

    def __init__(self, file: TextIO):
        self.file, self.lock, self.failed = file, threading.Lock(), False

    def write(self, number: int, found: list[dict]) -> None:
        """Append the results of case ``number`` and print them."""
        with self.lock:
            self.failed |= any(each.get("state") == "failed" for each in found)
            for each in found:
                if each.get("state") != "begun":
                    print(log_line(each), flush=True)
                self.file.write(f"{json.dumps({'number': number} | each)}\n")
                self.file.flush()


def attempt(case: Case, bench: Bench) -> list[dict]:
    """Run a case and return its results, or its failure."""
    if bench.left() <= 0:
        return [{"case": case.name, "state": "not run", "error": "no time was left"}]
    try:
        found = case.run()
    except Exception as error:
        short = f"{type(error).__name__}: {error}"
        return [{"case": case.name, "state": "failed", "trace": traceback.format_exc(), "error": short}]
    return [{"case": case.name} | each for each in (found if isinstance(found, list) else [found])]


def log_line(found: dict) -> str:
    """Return a result as a line of text; removes its traceback."""
    times = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in found.get("seconds", {}).items())
    text = found.pop("trace", "") or found.get("error") or times or found.get("state", "passed")
    return f"{found['case']}: {text}"


def one_by_one(cases: list[Case], first: int, bench: Bench, log: Log, limit: float) -> None:
    """Run the cases from ``first`` on, each logged before it begins.

    A case that exceeds ``limit`` seconds or makes the device unusable ends the process with status LOST; the caller
    starts another process with the next case.
    """

    def expire(number: int, name: str) -> None:
        log.write(number, [{"case": name, "state": "failed", "error": f"it did not end within {limit:g} s"}])
        os._exit(LOST)

    for number, case in enumerate(cases[first:], first):
        log.write(number, [{"case": case.name, "state": "begun"}])
        watch = threading.Timer(limit, expire, (number, case.name))
        watch.daemon = True
        watch.start()
        found = attempt(case, bench)
        watch.cancel()
        log.write(number, found)
        if bench.lost():
            os._exit(LOST)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m device.part")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0, help="number of the first case to run")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sanitizer", default="compute-sanitizer")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.rehearse, options.out.parent, options.seconds, options.data, options.sanitizer)
    with open(options.out, "a", encoding="utf-8") as file:
        cases, log = PARTS[options.part](bench), Log(file)
        if options.part in PARALLEL:
            with ThreadPoolExecutor(len(cases)) as pool:
                list(pool.map(lambda each: log.write(each[0], attempt(each[1], bench)), enumerate(cases)))
        else:
            one_by_one(cases, options.first, bench, log, LIMITS.get(options.part, LIMIT))
    return int(log.failed)


if __name__ == "__main__":
    sys.exit(main())

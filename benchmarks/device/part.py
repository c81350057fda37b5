"""One part of the run: ``python -m device.part NAME --out CASES.jsonl``, started in benchmarks/ by ``device``.

Every case is a line of the file as soon as it is done: one that fails, or that no time is left for, says so there.
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
AT_ONCE = ("tests", "sanitizer")  # nothing is timed there
LONGEST = {"epochs": 600, "papers": 600, "models": 150}  # seconds a case may take, elsewhere these:
LONG = 60


class Cases:
    """The file of a part's cases, and who may write there."""

    def __init__(self, file: TextIO):
        self.file, self.lock, self.failed = file, threading.Lock(), False

    def keep(self, number: int, found: list[dict]) -> None:
        with self.lock:
            self.failed |= any(each.get("state") == "failed" for each in found)
            for each in found:
                if each.get("state") != "begun":
                    print(shown(each), flush=True)
                self.file.write(f"{json.dumps({'number': number} | each)}\n")
                self.file.flush()


def attempt(case: Case, bench: Bench) -> list[dict]:
    """What a case found."""
    if bench.left() <= 0:
        return [{"case": case.name, "state": "not run", "error": "no time was left"}]
    try:
        found = case.run()
    except Exception as error:
        short = f"{type(error).__name__}: {error}"
        return [{"case": case.name, "state": "failed", "trace": traceback.format_exc(), "error": short}]
    return [{"case": case.name} | each for each in (found if isinstance(found, list) else [found])]


def shown(found: dict) -> str:
    """A case's line in the log."""
    times = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in found.get("seconds", {}).items())
    said = found.pop("trace", "") or found.get("error") or times or found.get("state", "passed")
    return f"{found['case']}: {said}"


def one_by_one(cases: list[Case], first: int, bench: Bench, kept: Cases, longest: float) -> None:
    """Each is written down before it begins. The process ends with one that hangs, or that broke the device for it;
    another goes on with the next one.
    """

    def hangs(number: int, name: str) -> None:
        kept.keep(number, [{"case": name, "state": "failed", "error": f"it did not end within {longest:g} s"}])
        os._exit(LOST)

    for number, case in enumerate(cases[first:], first):
        kept.keep(number, [{"case": case.name, "state": "begun"}])
        watch = threading.Timer(longest, hangs, (number, case.name))
        watch.daemon = True
        watch.start()
        found = attempt(case, bench)
        watch.cancel()
        kept.keep(number, found)
        if bench.lost():
            os._exit(LOST)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m device.part")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0, help="number of the case to begin with")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sanitizer", default="compute-sanitizer")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.rehearse, options.out.parent, options.seconds, options.data, options.sanitizer)
    with open(options.out, "a", encoding="utf-8") as file:
        cases, kept = PARTS[options.part](bench), Cases(file)
        if options.part in AT_ONCE:
            with ThreadPoolExecutor(len(cases)) as pool:
                list(pool.map(lambda each: kept.keep(each[0], attempt(each[1], bench)), enumerate(cases)))
        else:
            one_by_one(cases, options.first, bench, kept, LONGEST.get(options.part, LONG))
    return int(kept.failed)


if __name__ == "__main__":
    sys.exit(main())

"""One part of the run: ``python -m device.part NAME --out CASES.jsonl``, started in benchmarks/ by ``device``.

Every case is a line of the file as soon as it is done: one that fails, or that no time is left for, says so there.
"""

import argparse
import json
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from device import attention_pool, gru, models, power_spectrogram, proofs
from device.bench import Bench, Case, machine

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


def attempt(case: Case, bench: Bench) -> list[dict]:
    """What a case found; a GPU that no longer answers ends the part."""
    if bench.left() <= 0:
        return [{"case": case.name, "state": "not run", "error": "no time was left"}]
    try:
        found = case.run()
    except Exception as error:
        if not bench.rehearse:
            torch.cuda.synchronize()  # raises again where the error has broken the device for this process
        short = f"{type(error).__name__}: {error}"
        return [{"case": case.name, "state": "failed", "trace": traceback.format_exc(), "error": short}]
    return [{"case": case.name} | each for each in (found if isinstance(found, list) else [found])]


def shown(found: dict) -> str:
    """A case's line in the log."""
    times = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in found.get("seconds", {}).items())
    said = found.pop("trace", "") or found.get("error") or times or found.get("state", "passed")
    return f"{found['case']}: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m device.part")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sanitizer", default="compute-sanitizer")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.rehearse, options.out.parent, options.seconds, options.data, options.sanitizer)
    lock, failed = threading.Lock(), False
    with open(options.out, "a", encoding="utf-8") as file:

        def keep(found: list[dict]) -> None:
            nonlocal failed
            with lock:
                failed |= any(each.get("state") == "failed" for each in found)
                for each in found:
                    print(shown(each), flush=True)
                    file.write(f"{json.dumps(each)}\n")
                    file.flush()

        cases = PARTS[options.part](bench)
        with ThreadPoolExecutor(len(cases) if options.part in AT_ONCE else 1) as pool:
            list(pool.map(lambda case: keep(attempt(case, bench)), cases))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""A worker of ``ser-fast tune``: reads a job as JSON from standard input, writes JSON lines to standard output.

Each proof, and each path of a timed case, is announced before it begins: if the process hangs or dies, the last
announcement names the culprit.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator

import torch

from ser_fast.backends import build, measured, tuned
from ser_fast.tuning import proof, timing
from ser_fast.tuning.cases import Case, paths
from ser_fast.tuning.schedule import SHARE


def main() -> None:
    """Run the job of standard input. Whatever else is printed goes to standard error."""
    job = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run = {"machine": machine, "proof": proofs, "time": times}[job.pop("job")]
    device = torch.device(job.pop("device"))
    if device.type == "cuda" and run is not machine:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    for line in run(device, **job):
        print(json.dumps(line), file=results, flush=True)


def machine(device: torch.device) -> Iterator[dict]:
    """Yield the key of the device, why it cannot run each backend, and how busy it is in percent, if known."""
    if not torch.cuda.is_available():
        yield {"error": "torch can see no GPU"}
    elif device.index >= torch.cuda.device_count():
        yield {"error": f"--device is {device}; torch can see {torch.cuda.device_count()} GPUs"}
    else:
        why = {name: build.missing(name) or build.refused(name, device.index) for name in measured.BACKENDS}
        yield {"key": tuned.key(device), "refused": why, "busy": busy(device)}


def busy(device: torch.device, samples: int = 5) -> int | None:
    """Return how many percent of the time other processes use the device, None if the driver's library is missing."""
    with contextlib.suppress(Exception):  # nvidia-ml-py is not installed, or the driver refuses
        found = []
        for _ in range(samples):
            found.append(torch.cuda.utilization(device))
            time.sleep(0.2)
        return round(statistics.median(found))
    return None


def proofs(device: torch.device, op: str, backend: str, shapes: list) -> Iterator[dict]:
    """Yield the name of each proof before it runs, and at the end whether all were passed."""
    # New memory is NaN under this switch, so an output that a kernel does not write shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    count = 0
    try:
        for name, run in proof.proofs(op, backend, [tuple(shape) for shape in shapes], device):
            yield {"begun": name}
            run()
            torch.cuda.synchronize()
            count += 1
    except Exception as error:
        yield {"failed": _first_line(error)}
        return
    yield {"passed": count}


def times(device: torch.device, cases: list[dict], slot: float, end: float) -> Iterator[dict]:
    """Yield the seconds of every round of each case, by path; cases for which no time is left are omitted.

    Args:
        cases: fields of :class:`Case`, its number and the backends to time. The last one always has its time.
        slot: seconds for a case.
        end: when the process will be killed, in seconds since the epoch.
    """
    for place, given in enumerate(cases):
        number, backends = given.pop("number"), given.pop("backends")
        last = place == len(cases) - 1
        if not last and end - time.time() < 3 * slot:
            continue
        given["shape"] = tuple(given["shape"])
        try:
            calls, alone = paths(Case(**given), device, backends), {}
            for name in list(calls):
                yield {"number": number, "begun": name}
                try:
                    alone[name] = timing.once(calls[name])
                except torch.OutOfMemoryError as error:
                    del calls[name]
                    yield {"number": number, "left out": name, "error": _first_line(error)}
            yield {"number": number, "seconds": timing.rounds(calls, alone, SHARE * slot)}
        except Exception as error:
            yield {"number": number, "failed": _first_line(error)}
            with contextlib.suppress(Exception):
                torch.cuda.synchronize()
                continue
            return  # the device is lost for this process


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()

"""Steps of both models against another version of ser_fast: ``python benchmarks/versus.py PYTHON [--threads N]``.

PYTHON is the interpreter of an environment with the other version, such as that of a worktree built beside this one.
Each version runs in a process of its own and the two take turns, so that a change of the machine's load affects both.
Before a case is timed, logits and gradients of the same weights must be equal to rounding. Prints medians in
milliseconds and peak memory as Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TOLERANCE = 1e-3  # of the largest gradient; rounding may switch a ReLU or a maximum
PAUSE = 0.05  # seconds in which the threads of a version that has just run go to sleep
CASES = {
    "CGRU, B=64": ("CGRU", 64, 0),
    "BiGRU-MHA, B=32": ("BiGRUMHA", 32, 0),
    "BiGRU-MHA, B=64": ("BiGRUMHA", 64, 0),
    "BiGRU-MHA, B=2, 30 s": ("BiGRUMHA", 2, 3000),
}


class Version:
    """A process that serves the cases with one version of ser_fast."""

    def __init__(self, python: str, threads: int):
        command = [python, str(Path(__file__).resolve()), "--serve", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")

    def ask(self, *words) -> list[float]:
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[0]} ended without an answer to {words}")
        time.sleep(PAUSE)
        return json.loads(line)


def serve(threads: int) -> None:
    """Answer requests on standard input: ``[case, what]`` by numbers, as JSON."""
    import harness
    import torch
    import torch.nn.functional as F

    import ser_fast

    torch.set_num_threads(threads)

    def prepare(model: str, batch: int, frames: int) -> dict:
        torch.manual_seed(0)
        sizes = [frames] * batch if frames else (harness.EMODB_FRAMES * 2)[:batch]
        lengths = torch.tensor(sizes) * 160 + 480
        wave = torch.randn(batch, int(lengths.max()))
        network = getattr(ser_fast, model)(7)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        labels = torch.randint(7, (batch,))

        def logits_and_gradients() -> list[float]:
            network.eval()
            found = network(wave, lengths)
            grads = torch.autograd.grad(F.cross_entropy(found, labels), list(network.parameters()))
            network.train()
            return [*found.flatten().tolist(), *(float(grad.double().norm()) for grad in grads)]

        def training() -> None:
            network.train()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(wave, lengths), labels).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()

        @torch.inference_mode()
        def inference() -> None:
            network.eval()
            network(wave, lengths)

        return {"check": logits_and_gradients, "training": training, "inference": inference}

    calls: dict[str, dict] = {}
    for line in sys.stdin:
        case, what = json.loads(line)
        if case not in calls:
            calls = {case: prepare(*CASES[case])}
        if what == "memory":
            answer = [float(harness.peak_memory(calls[case]["training"]) or 0)]
        elif what == "check":
            answer = calls[case]["check"]()
        else:
            start = time.perf_counter()
            calls[case][what]()
            answer = [time.perf_counter() - start]
        print(json.dumps(answer), flush=True)


def differences(found: list[float], wanted: list[float]) -> float:
    """Return the largest difference relative to the largest value."""
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) / max(map(abs, wanted))


def compare(versions: list[Version], case: str, rounds: int) -> list[list[str]]:
    """Return the rows of a case: training, inference, memory."""
    error = differences(*(version.ask(case, "check") for version in versions))
    if not error <= TOLERANCE:
        raise SystemExit(f"{case}: the versions differ by {error:.1e} of the largest value, so it is not timed")
    rows = []
    for what in ("training", "inference"):
        seconds = [[version.ask(case, what)[0] for version in versions] for _ in range(rounds + 1)][1:]
        ours, other = (1e3 * statistics.median(column) for column in zip(*seconds))
        rows.append([f"{case}, {what}, ms", f"{ours:.0f}", f"{other:.0f}", f"{other / ours:.2f}", f"{error:.0e}"])
    ours, other = (version.ask(case, "memory")[0] / 1e6 for version in versions)
    ratio = f"{other / ours:.2f}" if ours else "not known"
    return [*rows, [f"{case}, training, peak MB", f"{ours:.0f}", f"{other:.0f}", ratio, ""]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="interpreter of the other version's environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.threads)
        return
    if not options.python:
        parser.error("PYTHON is missing; it must be the interpreter of an environment with another version")
    versions = [Version(python, options.threads) for python in (sys.executable, options.python)]
    print("| case | this version | the other | other / this | difference |\n|---|--:|--:|--:|--:|")
    for case in CASES:
        for row in compare(versions, case, options.rounds):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

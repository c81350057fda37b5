"""Choose the default backend of CUDA tensors: ``python benchmarks/choices.py RUN.json [--out measured.json]``.

Writes the result of the acceptance run on a GPU: by op, precision and, for the GRU, hidden size, torch and the proven
backends, fastest first. A backend is proven for an op if its tests ran and nothing of it failed: no test, no
compute-sanitizer tool and no check of the op's benchmarks. It is placed before torch only if it was not slower than
torch's own path in any case of that precision and size. Entries of other compute capabilities in the file are kept.
"""

import argparse
import json
from pathlib import Path

from ser_fast.backends import measured
from ser_fast.data.files import write_atomically
from ser_fast.tuning import choice

FILE = Path(__file__).parents[1] / "ser_fast/backends/measured.json"
# Parts of the run that concern an op; the first has its times.
PARTS = {"gru": ("gru", "recurrence"), "attention_pool": ("pool",), "power_spectrogram": ("spectrogram",)}
# Peers that the module runs without our kernels.
PEERS = {
    "gru": ("nn.GRU", "nn.GRU, packed"),
    "attention_pool": ("eager torch",),
    "power_spectrogram": ("torch.stft chain", "torch stft chain"),
}
MODES = {"training", "inference"}
TOOLS = ("memcheck", "racecheck", "synccheck")


def cases(run: dict, part: str) -> list[dict]:
    """Return the cases of a part, none if it has not run."""
    return run["parts"].get(part, {}).get("cases", [])


def state(case: dict) -> str:
    """Return the state of a case or part; without one it has passed."""
    return "failed" if case.get("failed") else case.get("state", "passed")


def concerns(case: dict, backend: str) -> bool:
    """Return whether a case or its failure concerns this backend; one that names no backend concerns all."""
    named = [name for name in measured.BACKENDS
             if case.get("backend") == name or f"ours, {name}" in case.get("error", "")]  # fmt: skip
    return not named or backend in named


def reason_unproven(run: dict, op: str, backend: str) -> str | None:
    """Return why the backend is not proven for the op; None if it is."""
    tests = [case for case in cases(run, "tests") if concerns(case, backend)]
    for case in tests:
        if state(case) != "passed":
            return f"{case['case']}: {state(case)}"
    whole = state(run["parts"].get("tests", {}))
    if whole != "passed" and all(state(case) == "passed" for case in cases(run, "tests")):
        return f"the part tests: {whole}"  # it is unknown which tests did not run
    if not any(case.get("passed") for case in tests):
        return "none of its tests has passed"
    for part in ("tests", "sanitizer", *PARTS[op]):
        failed = [case for case in cases(run, part) if state(case) == "failed"]
        if state(run["parts"].get(part, {})) == "failed" and not failed:
            return f"the part {part}: failed"
        for case in failed:
            if concerns(case, backend):
                return f"{case.get('case') or case['tool']}: failed"
    return None


def unchecked(run: dict) -> list[str]:
    """Return what has not run; a backend can be proven without it."""
    lines = [f"the part {part}: {state(found)}" for part, found in run["parts"].items() if state(found) != "passed"]
    for backend in measured.BACKENDS:
        done = {case.get("tool") for case in cases(run, "sanitizer")
                if concerns(case, backend) and state(case) in ("passed", "failed")}  # fmt: skip
        lines += [f"{tool} by {backend}: not run" for tool in TOOLS if tool not in done]
    return lines


def ordered(op: str, timed: list[dict], backends: list[str]) -> list[str]:
    """Return torch and the backends, fastest first; ``timed`` holds the seconds of every case by name."""
    peers = [next((seconds[name] for name in PEERS[op] if name in seconds), 0) for seconds in timed]
    ours = {name: [seconds[f"ours, {name}"] for seconds in timed] for name in backends}
    ahead = [name for name in backends if all(mine <= peer for mine, peer in zip(ours[name], peers))]
    return choice.order(ours, ahead)


def choices(run: dict, op: str) -> tuple[dict, list[str]]:
    """Return the op's orders by precision and hidden size, and what is left out of them with the reason."""
    reasons = {backend: reason_unproven(run, op, backend) for backend in measured.BACKENDS}
    left_out = [f"{op} by {backend}: {why}" for backend, why in reasons.items() if why]
    found: dict[tuple, list[dict]] = {}
    for case in cases(run, PARTS[op][0]):
        if case.get("op") == op:
            found.setdefault((case["precision"], case.get("hidden_size", 0)), []).append(case)
    chosen: dict = {}
    for (precision, size), same in sorted(found.items()):
        what = f"{op} {precision}" + (f" H={size}" if size else "")
        modes = {case["mode"] for case in same if "mode" in case}
        if modes and modes != MODES:
            left_out.append(f"{what}: {' and '.join(modes)} alone was timed")
            continue
        timed, whole = [case.get("seconds", {}) for case in same], []
        for backend in (name for name, why in reasons.items() if not why):
            if all(f"ours, {backend}" in seconds for seconds in timed):
                whole.append(backend)
            else:
                left_out.append(f"{what} by {backend}: not timed in every case")
        choice.nested(chosen, precision, size, ordered(op, timed, whole))
    return chosen, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    try:
        run = json.loads(options.run.read_text(encoding="utf-8"))
        if not {"machine", "parts"} <= run.keys():
            raise ValueError("it has no machine or no parts; it must be of the acceptance run on a GPU")
        left_out, found = unchecked(run), {}
        for op in PARTS:
            found[op], why = choices(run, op)
            left_out += why
        if not any(found.values()):
            raise ValueError("no op was timed in it, in both modes; nothing is written")
        entry = {name: run["machine"].get(name) for name in measured.ABOUT} | found
        table = measured.read(options.out) | {str(run["machine"].get("capability")): entry}
        measured.check(table)
    except (OSError, ValueError) as error:
        parser.error(f"{options.run}: {error}")
    write_atomically(options.out, f"{json.dumps(table, indent=1)}\n".encode())
    for name, value in measured.described(table).items():
        print(f"{name:<32} {value}")
    print("\nleft out:", *(left_out or ["nothing"]), sep="\n")


if __name__ == "__main__":
    main()

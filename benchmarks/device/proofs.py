"""Parts `tests` (tests of every kernel on the device) and `sanitizer` (tools of compute-sanitizer)."""

import functools
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from device.bench import KERNELS, Bench, Case

TESTS = Path(__file__).parents[2] / "tests"
# Test files by backend, and the number of processes if pytest-xdist is installed. Tests of "both" name their backend.
FILES = {
    "cuda": (["native/test_native.py", "native/test_native_gru.py"], 1),
    "triton": (["triton/test_triton.py"], 6),
    "both": (["integration/test_gpu.py"], 8),
}
REHEARSED = {
    "cuda": ["native/test_native.py", "-k", "clamp or schemas"],
    "triton": ["triton/test_triton.py", "-k", "clears_packed"],
    "both": ["integration/test_gpu.py", "-k", "bitwise"],
}
TOOLS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "from integration import test_gpu as t; t.everything(t.inputs(small=True)); print('all kernels ran')"
KEPT = 25  # last lines of a failure's output


def tests(bench: Bench) -> list[Case]:
    """Test every kernel: all dtypes, both GRU forms, bitwise repeatability, CUDA graphs, streams, torch.compile."""
    return [
        Case(f"pytest {' '.join(files)}", functools.partial(tested, bench, kernels, files, jobs))
        for kernels, (files, jobs) in FILES.items()
    ]


def tested(bench: Bench, kernels: str, files: list[str], jobs: int) -> list[dict]:
    """Run test files and return the outcomes by backend, as far as they are known when time runs out."""
    chosen = REHEARSED[kernels] if bench.rehearse else files
    options = ["-q", "-m", "", "-p", "no:cacheprovider", "-p", "device.outcomes"]  # thorough cases too
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    if jobs > 1 and not bench.rehearse and importlib.util.find_spec("xdist"):
        command += ["-n", str(jobs), "--dist", "worksteal"]
    benchmarks = str(Path(__file__).parents[1])
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as outcomes:
        code, output = call(
            command,
            bench,
            TESTS,
            SER_FAST_OUTCOMES=outcomes.name,
            TORCHINDUCTOR_COMPILE_THREADS="2",  # per process
            PYTHONPATH=os.pathsep.join([os.environ.get("PYTHONPATH", ""), benchmarks]),
        )
        found = [json.loads(line) for line in outcomes if line.endswith("\n")]
    results = []
    for backend in KERNELS if kernels == "both" else (kernels,):
        case, own = f"{' '.join(files)}, {backend}", [one for one in found if backend in _whose(one, kernels)]
        if own or not bench.rehearse:
            results.append(_counted(case, backend, own) | ({"by test": _by_test(own)} if kernels == "both" else {}))
        else:
            results.append({"case": case, "backend": backend, "state": "not run", "error": "there is no GPU"})
    if code is None:
        results = [{"state": "not run", "error": "time ran out before all tests had run"} | each for each in results]
    elif code and not any(each.get("state") == "failed" for each in results):
        results.append({"case": " ".join(files), "state": "failed", "error": f"pytest gave {code}:\n{output}"})
    return results


def _whose(outcome: dict, kernels: str) -> tuple[str, ...]:
    """Return the backends that a test covers: those in its parameters, or all if it names none."""
    named = re.findall(rf"[\[-]({'|'.join(KERNELS)})(?=[\]-])", outcome["test"])
    return (kernels,) if kernels != "both" else tuple(named) or KERNELS


def _by_test(outcomes: list[dict]) -> dict[str, str]:
    """Return the worst outcome of each test function over its parameters."""
    words: dict[str, set[str]] = {}
    for one in outcomes:
        words.setdefault(one["test"].rpartition("::")[2].partition("[")[0], set()).add(one["outcome"])
    return {
        name: next(word for word in ("failed", "passed", "skipped") if word in found) for name, found in words.items()
    }


def _counted(case: str, backend: str, outcomes: list[dict]) -> dict:
    """Return the result of a case: counts, failures and the slowest tests."""
    counts = {name: sum(one["outcome"] == name for one in outcomes) for name in ("passed", "failed", "skipped")}
    result = {"case": case, "backend": backend, **counts}
    if not outcomes:
        return result | {"state": "failed", "error": "no test ran"}
    failures = [one for one in outcomes if one["outcome"] == "failed"]
    if failures:
        shown = {one["test"]: "\n".join(one["error"].splitlines()[-KEPT:]) for one in failures}
        result |= {"state": "failed", "failures": shown, "error": "; ".join(list(shown)[:8])}
    slowest = sorted(outcomes, key=lambda one: -one["seconds"])[:5]
    return result | {"slowest": {one["test"]: round(one["seconds"], 1) for one in slowest}}


def sanitizer(bench: Bench) -> list[Case]:
    """Run memcheck, racecheck and synccheck on every kernel with small cases, all in parallel."""
    return [
        Case(f"{tool}, {backend}", functools.partial(sanitized, bench, backend, tool))
        for tool, backend in itertools.product(TOOLS, KERNELS)
    ]


def sanitized(bench: Bench, backend: str, tool: str) -> dict:
    """Run one tool on one backend's kernels."""
    about = {"backend": backend, "tool": tool}
    if bench.rehearse:
        if tool != TOOLS[0] or backend != "triton":  # without a GPU only Triton's kernels run, interpreted
            return about | {"state": "not run", "error": "there is no GPU"}
        command = [sys.executable, "-c", f"import conftest; {SANITIZED}"]
    else:
        if not shutil.which(bench.sanitizer):
            return about | {"state": "not run", "error": f"there is no program {bench.sanitizer}"}
        command = [bench.sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    # torch's caching allocator would hide accesses outside a tensor.
    environment = {"SER_FAST_BACKEND": "auto" if bench.rehearse else backend, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, output = call(command, bench, TESTS, **environment)
    summary = [line for line in output.splitlines() if "SUMMARY" in line]
    about |= {"said": (summary or output.splitlines()[-1:] or ["nothing"])[-1]}
    if code is None:
        return about | {"state": "not run", "error": "time ran out"}
    return about if code == 0 else about | {"state": "failed", "error": f"it gave {code}:\n{output}"}


def call(command: list[str], bench: Bench, where: Path, **environment: str) -> tuple[int | None, str]:
    """Run a command; return its exit status (None if the part's time ran out) and its last lines."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=where,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(1, bench.left() - 2))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        output.seek(0)
        return code, "".join(output.readlines()[-KEPT:])

"""Shared by all benchmarks: description of the machine, check before timing, rates behind the floors."""

import ctypes
import datetime
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import ser_fast
from ser_fast.backends.tuned import processor
from ser_fast.tuning.checks import check, step  # noqa: F401  benchmarks import them from here

# Frames of 32 utterances of Emo-DB: random.Random(0).sample over its files in order, 640 samples a frame, hop 160.
EMODB_FRAMES = [
    385, 306, 391, 327, 347, 197, 241, 306, 402, 370, 357, 362, 406, 175, 366, 282,
    533, 164, 275, 262, 343, 265, 253, 276, 321, 386, 353, 400, 238, 238, 295, 205,
]  # fmt: skip
MODES = ("inference", "training")


def machine() -> dict:
    """Return the environment that a timing depends on: processor, threads, versions, commit, allocator, date."""
    return {
        "processor": processor(),
        "instruction set": f"{ser_fast.backends.instruction_set} (torch {torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ser_fast": ser_fast.__version__,
        "commit": _commit(),
        "dtype": "float32",
        "allocator": _allocator(),
        "TF32": torch.backends.cuda.matmul.allow_tf32 if torch.cuda.is_available() else "no GPU",
        "backend": ser_fast.backends.select("gru"),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """Return ``git describe`` of the sources; empty without git or a repository."""
    if not shutil.which("git"):
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def _allocator() -> str:
    """Return the name of the preloaded allocator, else that of the C library."""
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    other = next((name for name in ("jemalloc", "tcmalloc", "mimalloc") if f"lib{name}" in maps), None)
    return other or " ".join(platform.libc_ver()).strip() or platform.system()


def fastest(call: Callable[[], object], repeats: int = 10) -> float:
    """Return the minimum seconds of a call over ``repeats``, after one warm-up call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


class Sgemm:
    """A float32 matrix product of 2048³, whose rate gives the floor of operations made of products."""

    operations = 2 * 2048**3

    def __init__(self):
        self.operands = [torch.randn(2048, 2048) for _ in range(3)]

    def __call__(self) -> float:
        """Return the seconds of one product."""
        a, b, out = self.operands
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        return time.perf_counter() - start


def copy_bandwidth(size: int = 1 << 28) -> float:
    """Return bytes per second of a copy much larger than the caches; reads and writes are both counted."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / fastest(lambda: target.copy_(source))


def peak_memory(call: Callable[[], object]) -> int | None:
    """Return the bytes by which a call raises the peak resident memory, or None if not on Linux."""
    call()  # warm-up: threads, caches
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide what the call allocates
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    except (AttributeError, OSError):
        return None
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

"""What every benchmark shares: the machine it ran on, the check before the timing, the rates behind the floors."""

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
from torch import Tensor

import ser_fast

# Frames of 32 utterances of Emo-DB: random.Random(0).sample over its files in order, 640 samples a frame, hop 160.
EMODB_FRAMES = [
    385, 306, 391, 327, 347, 197, 241, 306, 402, 370, 357, 362, 406, 175, 366, 282,
    533, 164, 275, 262, 343, 265, 253, 276, 321, 386, 353, 400, 238, 238, 295, 205,
]  # fmt: skip
MODES = ("inference", "training")


def machine() -> dict:
    """What a figure depends on, and must be read with."""
    return {
        "processor": _processor(),
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


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str:
    """Empty where there is no git, or no repository."""
    if not shutil.which("git"):
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def _allocator() -> str:
    """The C library's, unless another was preloaded."""
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    other = next((name for name in ("jemalloc", "tcmalloc", "mimalloc") if f"lib{name}" in maps), None)
    return other or " ".join(platform.libc_ver()).strip() or platform.system()


def check(case: str, found, wanted, tolerance: float) -> float:
    """The largest difference of these tensors over the largest value of each, which must be within ``tolerance``."""
    worst = 0.0
    for one, other in zip(_tensors(found), _tensors(wanted), strict=True):
        if one.shape != other.shape:
            raise AssertionError(f"{case}: shape {list(one.shape)} is not {list(other.shape)}, so it is not timed")
        error = float((one.double() - other.double()).abs().max() / other.double().abs().max())
        if not error <= tolerance:
            raise AssertionError(
                f"{case}: differs by {error:.1e} of the largest value, more than {tolerance:.0e}, so it is not timed"
            )
        worst = max(worst, error)
    return worst


def _tensors(value) -> list[Tensor]:
    return [value.detach()] if isinstance(value, Tensor) else [tensor.detach() for tensor in value]


def step(mode: str, forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], tuple]:
    """A call of ``forward`` that returns its output and, in training, the gradients of ``inputs`` as well."""

    def inference() -> tuple:
        with torch.inference_mode():
            return (forward(),)

    def training() -> tuple:
        y = forward()
        return (y, *torch.autograd.grad(y, inputs, grad))

    return training if mode == "training" else inference


def fastest(call: Callable[[], object], repeats: int = 10) -> float:
    """Least seconds of a call after a first one: what the machine can do when nothing else runs."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


class Sgemm:
    """A float32 matrix product of 2048³, whose rate is the floor of whatever consists of products."""

    operations = 2 * 2048**3

    def __init__(self):
        self.operands = [torch.randn(2048, 2048) for _ in range(3)]

    def __call__(self) -> float:
        """Seconds of one product."""
        a, b, out = self.operands
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        return time.perf_counter() - start


def copy_bandwidth(size: int = 1 << 28) -> float:
    """Bytes a second of a copy far larger than the caches, read and written bytes both counted."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / fastest(lambda: target.copy_(source))


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the process's resident memory at its highest, or None where Linux does not say."""
    call()  # starts threads and loads what later calls find there
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory kept by the allocator would hide what the call takes
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except (AttributeError, OSError):
        return None
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

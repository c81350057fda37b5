"""The ops of the CUDA kernels on the host: csrc and kernels as they are, every thread of a GPU a fiber.

The threads run in an order drawn by seed. No GPU is needed.
"""

import ctypes
import fcntl
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from samples import assert_as_accurate

ROOT = Path(__file__).parents[1]
LIBRARY = "kernels.so"
FLAGS, SANITIZERS = "SER_FAST_NATIVE_FLAGS", "-fsanitize=address,undefined -g1 -O0"
SOURCES = [
    ROOT / "kernels/gru_plan.cpp",
    *(ROOT / "csrc" / f"{path.stem}.cpp" for path in sorted((ROOT / "kernels").glob("*.cu"))),
    *sorted((ROOT / "kernels").glob("*.cu")),
    *sorted((ROOT / "tests/native").glob("*.cpp")),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ops = torch.ops.ser_fast_cuda


def build(folder: Path, *flags: str, sources: list[Path] = SOURCES) -> str:
    """Compile the ops, the kernels and the runner with the host's compiler and return the library's path."""
    torch_folder, library = Path(torch.__file__).parent, folder / LIBRARY
    compiler = ["g++", "-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", *flags]
    compiler += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DSER_FAST_WITH_CUDA", "-DSER_FAST_HOST"]
    compiler += ["-isystem", torch_folder / "include", "-isystem", sysconfig.get_path("include")]
    sources = sorted(sources, key=lambda source: -source.stat().st_size)  # the largest take longest
    objects = [folder / f"{number}.o" for number in range(len(sources))]

    def compiled(source: Path, target: Path) -> None:
        subprocess.run([*compiler, "-x", "c++", "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, sources, objects))
    libraries = ["-L", torch_folder / "lib", f"-Wl,-rpath,{torch_folder / 'lib'}", "-ltorch_cpu"]
    subprocess.run(["g++", "-shared", *flags, *objects, "-o", library, *libraries], check=True)
    return str(library)


def load(folder: Path) -> ctypes.CDLL:
    """Return the library of a folder, whose ops take CPU tensors. The first process to come builds it.

    The sanitizers' test builds with flags of its own.
    """
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / LIBRARY).exists():
            build(folder, *os.environ.get(FLAGS, "").split())
    torch.ops.load_library(folder / LIBRARY)
    return ctypes.CDLL(str(folder / LIBRARY))


def seed(native, number: int) -> None:
    """Set the seed of the order in which the threads run from now on."""
    native.ser_fast_seed(ctypes.c_size_t(number))


def sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """Python with the sanitizers loaded first, so that torch's tensors lie in memory that they watch."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("g++ came without its sanitizers' libraries")
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python leaks, fibers have their own stacks
        "UBSAN_OPTIONS": "halt_on_error=1",
        FLAGS: SANITIZERS,
    }
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment)


def spoilt(tensor: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """NaN past the lengths, which no kernel may read."""
    if lengths is None or not tensor.is_floating_point():
        return tensor
    past = torch.arange(tensor.shape[1], device=tensor.device) >= lengths[:, None]
    return tensor.masked_fill(past.reshape(past.shape + (1,) * (tensor.dim() - 2)), torch.nan)


def assert_near(found, peer, truth, roundings: float, what: str) -> None:
    """float32 at most twice the reference's error, half precision within so many roundings of the largest value."""
    if found.dtype == torch.float32:
        assert_as_accurate(found, peer, truth, what)
        return
    assert torch.isfinite(found).all(), what
    error, scale = float((found.double() - truth).abs().max()), max(1.0, float(truth.abs().max()))
    assert error <= roundings * torch.finfo(found.dtype).eps * scale, f"{what} is off by {error:.1e} of {scale:.1e}"

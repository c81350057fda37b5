"""Read the build record and check which GPUs can run the built kernels."""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

import torch

from ser_fast.backends import gpus, state

TRITON_MISSING = (
    "triton is not installed; type `pip install triton`"
    if sys.platform.startswith("linux")
    else "triton is not installed, and has no package for this system"
)


def build_info() -> dict:
    """Return what the install recorded: ``compiled``, ``reason`` if not, ``cuda``, ``cuda_archs``, the compiler."""
    path = Path(__file__).parents[1] / "build_info.json"
    if path.is_file():
        return json.loads(path.read_text())
    return {
        "compiled": False,
        "reason": "ser_fast runs from its sources without an install; type `pip install -e .` to build the kernels.",
        "cuda": "not built: ser_fast runs from its sources without an install",
        "cuda_archs": [],
    }


def missing(backend: str) -> str | None:
    """Return why the kernels of "cuda" or "triton" are not installed, whatever the GPU; None if they are."""
    if torch.version.hip:
        return "this torch is for AMD GPUs, which the kernels do not support"
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else TRITON_MISSING
    if not state.current.loaded:
        return state.current.reason
    return None if build_info().get("cuda_archs") else f"its kernels are {build_info()['cuda']}"


def driver_version() -> int:
    """Return the latest CUDA version that the driver supports, as of ``cuDriverGetVersion``: 13010 is 13.1."""
    version = ctypes.c_int()
    ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def refused(backend: str, gpu: int | None) -> str | None:
    """Return why a GPU cannot run the backend's kernels, None if it can; ``gpu`` None is torch's current one."""
    info, capability = build_info(), torch.cuda.get_device_capability(gpu)
    built = info.get("cuda_archs", ()), info.get("nvcc", "0.0")
    why = gpus.refusal(backend, capability, driver_version(), *built)
    return why and f"cuda{'' if gpu is None else f':{gpu}'} is {torch.cuda.get_device_name(gpu)}: {why}"


def runs(backend: str, gpu: int | None) -> bool:
    """Return whether the backend's kernels are installed and this GPU can run them."""
    return not (missing(backend) or refused(backend, gpu))


def capability(gpu: int | None) -> str | None:
    """Return a GPU's compute capability such as "9.0"; None if torch can see no GPU."""
    return "{}.{}".format(*torch.cuda.get_device_capability(gpu)) if torch.cuda.is_available() else None

"""What is installed: versions, what was built and loaded, and which backend runs each op."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import ser_fast
from ser_fast import backends


def info() -> dict:
    """Everything ``ser-fast info`` prints, as plain values."""
    build = backends.build_info()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        "ser_fast": ser_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{backends.instruction_set or torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can see",
        "built": f"with {build['compiler']}" if build["compiled"] else f"no: {build['reason']}",
        "loaded": "yes" if backends.loaded else f"no: {backends.reason}",
        "cuda kernels": _cuda(build),
        "triton kernels": f"{backends.UNPROVEN}; {_triton()}",
        "SER_FAST_CPU": os.environ.get("SER_FAST_CPU", "unset (the best)"),
        "SER_FAST_BACKEND": os.environ.get("SER_FAST_BACKEND", "unset (auto)"),
        "backends": {f"{op} on {device}": backends.select(op, device) for op in backends.OPS for device in devices},
    }


def _cuda(build: dict) -> str:
    if not build.get("cuda_archs"):
        return build["cuda"]
    return f"{backends.UNPROVEN}; {build['cuda']}; SER_FAST_BACKEND=cuda selects them for CUDA tensors"


def _triton() -> str:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed; type `pip install triton`"
    return f"triton {found}; SER_FAST_BACKEND=triton selects them for CUDA tensors"


def text() -> str:
    values = info()
    chosen = values.pop("backends")
    lines = [f"{name:<24} {value}" for name, value in values.items()]
    chosen |= backends.RULES
    return "\n".join([*lines, "", "which backend runs", *(f"{name:<24} {value}" for name, value in chosen.items())])

"""What was built, what loaded, why not, and which backend runs an op on a device.

A backend is a function with the op's signature. Every op has its reference, in plain torch, which serves any
device; the compiled CPU kernels replace it for CPU tensors when they load. ``SER_FAST_BACKEND=reference`` keeps
them out. ``SER_FAST_CPU`` chooses their instruction set: avx512_bf16, avx512, avx2 or portable.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

library = torch.library.Library("ser_fast", "FRAGMENT")
BACKENDS = ("auto", "compiled", "reference")
OPS = ("gru", "attention_pool", "power_spectrogram")

loaded = False
reason: str | None = None
instruction_set: str | None = None  # of the compiled CPU kernels; SER_FAST_CPU chooses a lesser one


def register(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    half_on: tuple[str, ...] = (),
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Define the op ``ser_fast::schema`` with its reference for every device that has no kernel of its own.

    ``fake`` checks the arguments and gives the outputs' shapes. Without ``backward`` the op is a backward itself,
    and a second derivative through it is an error. Under autocast the arguments become float32, or on
    the devices of ``half_on`` the dtype in force at the call; the CPU has no kernels for float16.
    """
    name = schema.split("(")[0]
    library.define(schema)
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ser_fast::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"ser_fast::{name}", backward or _no_second_derivative(name), setup_context=setup_context, lib=library
    )
    for device in ("cpu", "cuda"):
        library.impl(name, _autocast(name, device, device in half_on), f"Autocast{device.upper()}")


def _no_second_derivative(name: str) -> Callable:
    def backward(ctx, *grads):
        raise RuntimeError(
            f"ser_fast::{name} has no derivative of its own; for second derivatives call the op's reference"
        )

    return backward


def _autocast(name: str, device: str, half: bool) -> Callable:
    def call(*args):
        dtype = torch.get_autocast_dtype(device)
        if not half or (device == "cpu" and dtype == torch.float16):
            dtype = torch.float32
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.ser_fast, name)(*(_cast(arg, dtype) for arg in args))

    return call


def _cast(arg, dtype: torch.dtype):
    if isinstance(arg, torch.Tensor) and arg.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return arg.to(dtype)
    return arg


def build_info() -> dict:
    """What the install recorded: ``compiled``, ``reason`` if not, ``cuda`` and the compiler."""
    path = Path(__file__).with_name("build_info.json")
    if path.is_file():
        return json.loads(path.read_text())
    return {
        "compiled": False,
        "reason": "ser_fast runs from its sources without an install; type `pip install -e .` to build the kernels.",
        "cuda": "not built",
    }


def load() -> None:
    """Load the compiled kernels if they were built and ``SER_FAST_BACKEND`` does not keep them out."""
    global loaded, reason, instruction_set
    wanted = os.environ.get("SER_FAST_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"SER_FAST_BACKEND is '{wanted}'; it must be one of {', '.join(BACKENDS)}")
    if wanted == "reference":
        reason = "SER_FAST_BACKEND=reference keeps the compiled kernels out; unset it to use them."
        return
    info = build_info()
    try:
        instruction_set = importlib.import_module("ser_fast._C").cpu
        loaded, reason = True, None
    except ImportError as error:
        reason = (
            info["reason"]
            or f"the compiled kernels did not load ({error}); type `pip install --force-reinstall ser_fast`."
        )
    if wanted == "compiled" and not loaded:
        raise ImportError(f"SER_FAST_BACKEND=compiled, but {reason}")


# Where the peer's path is taken because it was measured to be faster; `ser-fast info` shows it.
RULES = {
    "GRU with T = 1 on CPU": "torch: laying W_hh out for the kernel costs more than one step saves",
    "GRUCell": "torch, for the same reason",
}


def select(op: str, device: str | torch.device = "cpu", steps: int | None = None) -> str:
    """Which backend runs ``op`` on tensors of ``device``: "compiled", "torch" or "reference".

    "torch" is ``nn.GRU``'s own path. ``ser_fast.GRU(reset_after=True)`` takes it on a GPU, where no kernel of ours
    has been measured yet, and for a single step, by ``RULES``.
    """
    if op not in OPS:
        raise ValueError(f"op is '{op}'; it must be one of {', '.join(OPS)}")
    kind = torch.device(device).type
    if op == "gru" and (kind == "cuda" or steps == 1):
        return "torch"
    return "compiled" if kind == "cpu" and loaded else "reference"

"""What was built, what loaded, why not, and which backend runs an op on a device.

A backend is a function with the op's signature. Every op has its reference, in plain torch, which serves any
device; the compiled CPU kernels replace it for CPU tensors when they load. ``SER_FAST_BACKEND=reference`` keeps
them out. ``SER_FAST_CPU`` chooses their instruction set: avx512_bf16, avx512, avx2 or portable.

CUDA tensors run on what was measured fastest on GPUs of the same compute capability, as ``measured`` has it, and on
torch's own operators where nothing was, until ``SER_FAST_BACKEND`` or :func:`use` chooses the CUDA C++ kernels,
``"cuda"``, or the Triton kernels, ``"triton"``.
"""

import ctypes
import functools
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ser_fast.backends import gpus, measured

library = torch.library.Library("ser_fast", "FRAGMENT")
cuda_library = torch.library.Library("ser_fast_cuda", "FRAGMENT")  # the CUDA C++ kernels, as csrc/ takes them
BACKENDS = ("auto", "compiled", "cuda", "triton", "reference")
OPS = ("gru", "attention_pool", "power_spectrogram")

UNPROVEN = "unproven on a GPU"  # whoever offers the CUDA or the Triton kernels says so
TRITON_MISSING = (
    "triton is not installed; type `pip install triton`"
    if sys.platform.startswith("linux")
    else "triton is not installed, and has no package for this system"
)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int16)
CUDA_DTYPES = {
    "gru": (torch.float32, torch.float16, torch.bfloat16),
    "attention_pool": (torch.float32, torch.float16, torch.bfloat16),
    "power_spectrogram": (torch.float32, torch.int16),
}

loaded = False
on_cuda = "auto"  # or "cuda" or "triton"
gru_kernels = None  # the module, once Triton may be chosen: a traced graph may not import it
widest = [0, 0, 0]  # H for which W_hh fits on every GPU's chip, by GRU_PRODUCTS, once the CUDA kernels may be chosen
GRU_PRODUCTS = ("half precision", "tf32", "float32 as three tf32 products")
reason: str | None = None
instruction_set: str | None = None  # of the compiled CPU kernels; SER_FAST_CPU chooses a lesser one


def register(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    half_on: tuple[str, ...] = (),
    tags: tuple[torch.Tag, ...] = (),
    cuda: Callable | None = None,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
) -> None:
    """Define the op ``ser_fast::schema`` with its reference for every device that has no kernel of its own.

    ``fake`` checks the arguments and gives the outputs' shapes; ``cuda`` is the op by the CUDA C++ kernel. Without
    ``backward`` the op is a backward itself, and its own derivative is that of its reference. Under autocast the
    arguments become float32, or on the devices of ``half_on`` the dtype in force at the call; the CPU has no kernels
    for float16.
    """
    name = schema.split("(")[0]
    library.define(schema, tags=tags)
    library.impl(name, reference, "CompositeExplicitAutograd")
    library.impl(name, on_cuda_tensors(name, reference, cuda), "CUDA")
    torch.library.register_fake(f"ser_fast::{name}", fake, lib=library)
    if backward is None:
        backward, setup_context = _derivative_of(reference), _keep_arguments
    torch.library.register_autograd(f"ser_fast::{name}", backward, setup_context=setup_context, lib=library)
    for device in ("cpu", "cuda"):
        library.impl(name, _autocast(name, device, device in half_on), f"Autocast{device.upper()}")


def on_cuda_tensors(name: str, reference: Callable, cuda: Callable | None = None) -> Callable:
    """The op's kernel of the chosen backend where there is one, the reference otherwise.

    A forward and its backward may differ in theirs: all save and read the same gates, r, z, n and q.
    """
    op = next(op for op in OPS if name.startswith(op))
    parts = 3 if name == "gru" else 1  # of hidden_size in the last axis of its first tensor, gx or the gradient of y

    def call(*args):
        first = next(arg for arg in args if isinstance(arg, torch.Tensor))
        hidden_size = first.shape[-1] // parts if op == "gru" and first.dim() else None
        chosen, kernel = _on_gpu(op, first.device.index, first.dtype, hidden_size, alone=True), reference
        if chosen == "cuda":
            kernel = cuda or reference
        elif chosen == "triton":
            kernel = getattr(importlib.import_module(f"ser_fast.kernels.{op}"), name, reference)
        return kernel(*args)

    return call


def _keep_arguments(ctx, inputs, output) -> None:
    ctx.positions = [position for position, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*(inputs[position] for position in ctx.positions))
    ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]


def _derivative_of(reference: Callable) -> Callable:
    """The backward of an op by differentiating its reference: slow, and differentiable again."""

    def backward(ctx, *grads):
        arguments = list(ctx.others)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors):
            arguments[position] = tensor
        wanted = [position for position in ctx.positions if ctx.needs_input_grad[position]]

        def call(*tensors):
            full = list(arguments)
            for position, tensor in zip(wanted, tensors):
                full[position] = tensor
            return reference(*full)

        _, pull_back = torch.func.vjp(call, *(arguments[position] for position in wanted))
        found = dict(zip(wanted, pull_back(grads if len(grads) > 1 else grads[0])))
        return tuple(found.get(position) for position in range(len(arguments)))

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
    """What the install recorded: ``compiled``, ``reason`` if not, ``cuda``, ``cuda_archs`` and the compiler."""
    path = Path(__file__).parents[1] / "build_info.json"
    if path.is_file():
        return json.loads(path.read_text())
    return {
        "compiled": False,
        "reason": "ser_fast runs from its sources without an install; type `pip install -e .` to build the kernels.",
        "cuda": "not built: ser_fast runs from its sources without an install",
        "cuda_archs": [],
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
    if wanted in ("cuda", "triton"):
        use(wanted)


def use(backend: str) -> None:
    """What CUDA tensors run on from now on: "cuda", "triton", or "auto", what was measured fastest, else torch.

    Raises:
        ValueError: another name, "cuda" where it was not built or did not load, "triton" where it is not installed,
            or one of them where a visible GPU is AMD's or one that :func:`ser_fast.backends.gpus.refusal` refuses.
    """
    global on_cuda
    if backend not in ("auto", "cuda", "triton"):
        raise ValueError(f"backend is '{backend}'; it must be 'auto', 'cuda' or 'triton', for CUDA tensors")
    if backend != "auto":
        why = missing(backend) or next(filter(None, (refused(backend, gpu) for gpu in _visible())), None)
        if why:
            raise ValueError(f"backend is '{backend}', but {why}")
        _make_ready(backend)
    on_cuda = backend


def _visible() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


def _make_ready(backend: str) -> None:
    """What choosing by size needs to know: Triton's plans, or what fits on the chips of the GPUs that run "cuda"."""
    global gru_kernels
    if backend == "triton":
        gru_kernels = importlib.import_module("ser_fast.kernels.gru")
        return
    fitting = [widest_gru(gru_limits(gpu)) for gpu in _visible() if not refused("cuda", gpu)]
    widest[:] = map(min, zip(*fitting)) if fitting else (0, 0, 0)


def missing(backend: str) -> str | None:
    """Why the kernels of "cuda" or "triton" are not here, whatever the GPU; None if they are."""
    if torch.version.hip:
        return "this torch is for AMD GPUs, which our options do not fit yet"
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else TRITON_MISSING
    if not loaded:
        return reason
    return None if build_info().get("cuda_archs") else f"its kernels are {build_info()['cuda']}"


def driver_version() -> int:
    """The latest CUDA that the driver serves, as ``cuDriverGetVersion`` has it; torch itself does not tell."""
    version = ctypes.c_int()
    ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def refused(backend: str, gpu: int) -> str | None:
    """Why the GPU of this number, which torch sees, cannot run them; None if it can."""
    info, capability = build_info(), torch.cuda.get_device_capability(gpu)
    built = info.get("cuda_archs", ()), info.get("nvcc", "0.0")
    why = gpus.refusal(backend, capability, driver_version(), *built)
    return why and f"cuda:{gpu} is {torch.cuda.get_device_name(gpu)}: {why}"


def gru_limits(gpu: int) -> torch.Tensor:
    """What :func:`widest_gru` needs to know of the GPU of this number."""
    return torch.ops.ser_fast_cuda.gru_limits(torch.empty(0, device=f"cuda:{gpu}"))


def widest_gru(limits: torch.Tensor) -> list[int]:
    """The largest H whose GRU the CUDA kernels run, forward and backward, on a GPU of these limits, by GRU_PRODUCTS.

    ``limits``: bytes of shared memory a block may have, and how many clusters of 1, 2, 4 and 8 blocks run at once.
    """

    def fits(hidden: int, product: int) -> bool:
        ways = itertools.product((True, False), repeat=2)
        plan = torch.ops.ser_fast.gru_plan
        return all(plan(limits, 1, 1, hidden, reset_after, product, backward)[0] for reset_after, backward in ways)

    return [max((hidden for hidden in (64, 128, 192, 256, 512) if fits(hidden, product)), default=0)
            for product in range(len(GRU_PRODUCTS))]  # fmt: skip


def tf32_allowed() -> bool:
    """torch's own switch for RNNs, which cuDNN obeys too."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def gru_product(dtype: torch.dtype) -> int:
    """What the GRU's products are in now, by its number in GRU_PRODUCTS."""
    if dtype != torch.float32:
        return 0
    return 1 if tf32_allowed() else 2


# Where the peer's path is taken, being measured to be faster or ours not measured; `ser-fast info` shows it.
RULES = {
    "GRU with T = 1 on CPU": "torch: laying W_hh out for the kernel costs more than one step saves",
    "GRUCell": "torch, for the same reason",
    "GRU without kernels of ours": "torch, on CPU where they were not built and on any other device: the reference "
    "is slower",
    "GRU on CUDA, cuda or triton": "torch where W_hh does not fit on chip: nothing was measured there",
    "CUDA, none chosen": "the fastest that was measured on GPUs of its compute capability and is here; torch for what"
    " was not measured, and for a GRU with T = 1 or larger than any that was",
}


def capability(gpu: int | None) -> str | None:
    """As "9.0"; None where torch sees no GPU."""
    return "{}.{}".format(*torch.cuda.get_device_capability(gpu)) if torch.cuda.is_available() else None


@functools.cache
def measured_on(gpu: int | None) -> tuple[dict, tuple[str, ...]]:
    """What was measured on GPUs of this one's compute capability, and whose kernels it can run of those here.

    None is torch's current GPU. ``SER_FAST_BACKEND=reference`` keeps these kernels out too.
    """
    table = {} if os.environ.get("SER_FAST_BACKEND") == "reference" else measured.read(measured.FILE)
    entry = table.get(capability(gpu), {}) if table else {}
    here = tuple(name for name in measured.BACKENDS if entry and not (missing(name) or refused(name, gpu)))
    with _disable_current_modes():  # what is asked here is no part of a graph that is being exported
        for name in here:
            _make_ready(name)
    return entry, here


def _fastest(*call) -> str:
    return _measured_path(*call)


# A compiled graph cannot hold what asks a GPU. torch.compiler.assume_constant_result sets this too, but imports the
# compiler first, which takes seconds.
_fastest._dynamo_marked_constant = True


@functools.cache
def _measured_path(
    op: str, gpu: int | None, dtype: torch.dtype, tf32: bool, hidden_size: int | None, alone: bool
) -> str:
    entry, here = measured_on(gpu)
    name = "float32" if dtype == torch.int16 else str(dtype).removeprefix("torch.")
    order = measured.order(entry, op, "tf32" if tf32 else name, hidden_size)
    return _first_of([path for path in order if path in ("torch", *here)], op, dtype, hidden_size, alone)


def _on_gpu(op: str, gpu: int | None, dtype: torch.dtype, hidden_size: int | None, alone: bool = False) -> str:
    """ "cuda", "triton" or "torch"; ``alone`` is the op by itself, whose "torch" is the reference."""
    if on_cuda == "auto":
        tf32 = op == "gru" and dtype == torch.float32 and tf32_allowed()
        return _fastest(op, gpu, dtype, tf32, hidden_size, alone)
    return _first_of([on_cuda], op, dtype, hidden_size, alone)


def _first_of(paths: list[str], op: str, dtype: torch.dtype, hidden_size: int | None, alone: bool) -> str:
    """The first that serves the call. The GRU's op alone has no path of torch's; Triton's streams W_hh if it must."""
    for path in paths:
        if path == "torch":
            serves = not (alone and op == "gru")
        elif path == "triton":
            fits = alone or hidden_size is None or gru_kernels.plan(hidden_size, dtype, tf32_allowed()).resident
            serves = fits and dtype in TRITON_DTYPES
        else:
            fits = hidden_size is None or hidden_size <= widest[gru_product(dtype)]
            serves = fits and dtype in CUDA_DTYPES[op]
        if serves:
            return path
    return "torch"


def select(
    op: str,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    hidden_size: int | None = None,
) -> str:
    """Which backend runs ``op`` on tensors of ``device``: "compiled", "cuda", "triton", "torch" or "reference".

    "torch" is ``nn.GRU``'s own path. ``ser_fast.GRU(reset_after=True)`` takes it by ``RULES`` for a single step and
    where no kernel was built, and on a GPU unless kernels of ours are chosen, or were measured to be faster for this
    precision and hidden size, and W_hh fits on chip.
    A frame or a transform too large for a block of the CUDA kernels is the reference's all the same.
    """
    if op not in OPS:
        raise ValueError(f"op is '{op}'; it must be one of {', '.join(OPS)}")
    device = torch.device(device)
    kind = device.type
    if kind == "cuda" and not (on_cuda == "auto" and steps == 1):
        path = _on_gpu(op, device.index, dtype, hidden_size)
        if path != "torch":
            return path
    if op == "gru" and (kind != "cpu" or steps == 1 or not loaded):
        return "torch"
    return "compiled" if kind == "cpu" and loaded else "reference"

"""Select the backend that runs an op on a device.

CPU tensors run on the compiled kernels once these are loaded: ``SER_FAST_BACKEND=reference`` turns them off,
``SER_FAST_CPU`` chooses their instruction set. CUDA tensors run on the path that ``ser-fast tune`` found fastest on
this GPU (:mod:`ser_fast.backends.tuned`), else on the one measured on GPUs of the same compute capability
(:mod:`ser_fast.backends.measured`), else on torch's own operators, until ``SER_FAST_BACKEND`` or :func:`use` chooses
the CUDA C++ kernels ("cuda") or the Triton kernels ("triton").
"""

import importlib
import itertools
import os
import sys
import warnings
from pathlib import Path

import torch

from ser_fast import _torch_compat
from ser_fast._require import require
from ser_fast._torch_compat import constant_in_graphs, without_modes
from ser_fast.backends import build, measured, state, tuned
from ser_fast.backends.cpu_rules import Rules, parse

PACKAGE = str(Path(__file__).parents[1]) + os.sep
BACKENDS = ("auto", "compiled", "cuda", "triton", "reference")
OPS = ("gru", "attention_pool", "power_spectrogram", "self_attention", "conv_pool", "gray_deltas")
GRU_PRODUCTS = ("half precision", "tf32", "float32 as three tf32 products")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int16)
CUDA_DTYPES = {  # by op with kernels for CUDA tensors; the others run on their references there
    "gru": (torch.float32, torch.float16, torch.bfloat16),
    "attention_pool": (torch.float32, torch.float16, torch.bfloat16),
    "power_spectrogram": (torch.float32, torch.int16),
}
# Measured cases in which torch's path is faster, or ours was never measured; `ser-fast info` prints them.
RULES = {
    "GRU without a gradient on CPU": "compiled, projection included, in float32, float64 and bfloat16 at every T",
    "GRU with a gradient on CPU": "compiled, projection included in float32 and float64; bfloat16 is computed in "
    "float32, or with AVX512-BF16 by torch's projection and our recurrence",
    "GRU with a gradient and few steps": "torch on CPU for T = 1, from H = 129 on for T < 8, from H = 257 on for "
    "T < 16, or as `ser-fast tune --device cpu` found: laying out W_hh costs more than so few steps save; compiled "
    "for ragged batches",
    "GRUCell": "compiled without a gradient on CPU; else torch, as the GRU with T = 1",
    "GRU without our kernels": "torch, on CPU if they were not built and on other devices: the reference is slower",
    "GRU by cuda or triton": "torch if W_hh does not fit on chip: nothing was measured there",
    "CUDA, backend auto": "the fastest path by `ser-fast tune`, or measured on GPUs of its compute capability, if "
    "its kernels are installed; torch for what was not measured, for a GRU with T = 1 or larger than any measured",
}


def load() -> None:
    """Load the compiled kernels if they were built and ``SER_FAST_BACKEND`` does not turn them off.

    Raises:
        ValueError: ``SER_FAST_BACKEND`` is not one of ``BACKENDS``, or its kernels cannot run here.
        ImportError: ``SER_FAST_BACKEND=compiled`` and the kernels did not load.
    """
    now = state.current
    wanted = os.environ.get("SER_FAST_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"SER_FAST_BACKEND is '{wanted}'; it must be one of {', '.join(BACKENDS)}")
    if wanted == "reference":
        now.reason = "SER_FAST_BACKEND=reference turns the compiled kernels off; unset it to use them."
        return
    try:
        now.instruction_set = importlib.import_module("ser_fast._C").cpu
        now.loaded, now.reason = True, None
        follow_tuned()
    except ImportError as error:
        now.reason = (
            build.build_info()["reason"]
            or f"the compiled kernels did not load ({error}); type `pip install --force-reinstall ser_fast`."
        )
    if wanted == "compiled" and not now.loaded:
        raise ImportError(f"SER_FAST_BACKEND=compiled, but {now.reason}")
    if wanted in ("cuda", "triton"):
        use(wanted)


def follow(rules: Rules) -> None:
    """Let the CPU's kernels follow these rules from now on."""
    state.current.rules = rules
    if state.current.loaded:
        importlib.import_module("ser_fast._C").set_rules(rules.nanoseconds_per_thread, rules.frames_per_task)


def follow_tuned() -> None:
    """Let the CPU's kernels follow the rules that were measured on this machine, else the defaults."""
    entry, _ = tuned.read("cpu")
    follow(parse(entry["rules"]) if entry else Rules())


def use(backend: str) -> None:
    """Choose the backend of CUDA tensors from now on. A GPU is queried at its own first call, not here.

    Args:
        backend: "cuda", "triton", or "auto": the path that was measured fastest, else torch's operators.

    Raises:
        ValueError: another name; "cuda" if it was not built or did not load, "triton" if it is not installed; with an
            AMD GPU. The first call on a GPU that :func:`ser_fast.backends.gpus.refusal` refuses raises it as well.
    """
    if backend not in ("auto", "cuda", "triton"):
        raise ValueError(f"backend is '{backend}'; it must be 'auto', 'cuda' or 'triton', for CUDA tensors")
    why = backend != "auto" and build.missing(backend)
    if why:
        raise ValueError(f"backend is '{backend}', but {why}")
    state.current.on_cuda = backend


def spare(multiprocessors: int) -> None:
    """Leave multiprocessors to kernels that run beside the GRU's on CUDA, such as NCCL's in data parallel training.

    The GRU's plans then assume that as many clusters of blocks fewer run at once. Without compiled kernels there are
    no plans, and nothing changes.

    Args:
        multiprocessors: their number, 0 by default.

    Raises:
        ValueError: the number is no int in 0..2147483647.

    Example:
        >>> spare(8)
        >>> spare(0)
    """
    good = type(multiprocessors) is int and 0 <= multiprocessors < 2**31
    require(good, f"multiprocessors is {multiprocessors!r}", f"an int in 0..{2**31 - 1}")
    if state.current.loaded:
        importlib.import_module("ser_fast._C").set_spared(multiprocessors)


def reread() -> None:
    """Discard the cached choices, also those in compiled graphs: the next calls read the files again."""
    state.current.entries.clear()
    state.current.paths.clear()
    follow_tuned()
    _torch_compat.discard_graphs()


def gru_limits(gpu: int | None) -> torch.Tensor:
    """Return the limits of a GPU, None for torch's current one, that :func:`widest_gru` reads."""
    return torch.ops.ser_fast_cuda.gru_limits(torch.empty(0, device=torch.device("cuda", gpu)))


def widest_gru(limits: torch.Tensor) -> list[int]:
    """Return the largest H whose GRU the CUDA kernels run on a GPU, forward and backward, for each of GRU_PRODUCTS.

    Args:
        limits: bytes of shared memory a block may have, and how many clusters of 1, 2, 4 and 8 blocks run at once.
    """

    def fits(hidden: int, product: int) -> bool:
        ways = itertools.product((True, False), repeat=2)
        plan = torch.ops.ser_fast.gru_plan
        return all(plan(limits, 1, 1, hidden, reset_after, product, backward)[0] for reset_after, backward in ways)

    return [max((hidden for hidden in (64, 128, 192, 256, 512) if fits(hidden, product)), default=0)
            for product in range(len(GRU_PRODUCTS))]  # fmt: skip


def tf32_allowed() -> bool:
    """Return torch's switch for tf32 in RNNs, which also applies to cuDNN."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def gru_product(dtype: torch.dtype) -> int:
    """Return the index in GRU_PRODUCTS of the products that a GRU of this dtype uses now."""
    if dtype != torch.float32:
        return 0
    return 1 if tf32_allowed() else 2


def fits_on_chip(hidden_size: int, dtype: torch.dtype, gpu: int | None) -> bool:
    """Return whether the CUDA kernels can keep a W_hh of this size on the chip of a GPU."""
    known = state.current.widest
    if gpu not in known:
        with without_modes():  # the plans computed here are no part of a graph that is being exported
            known[gpu] = tuple(widest_gru(gru_limits(gpu))) if build.capability(gpu) else (0, 0, 0)
    return hidden_size <= known[gpu][gru_product(dtype)]


def measured_on(gpu: int | None) -> tuple[dict, tuple[str, ...]]:
    """Return the choices on this GPU, and the kernels among them that it can run.

    The user's own choices (:mod:`ser_fast.backends.tuned`) come first, then those measured on GPUs of the same
    compute capability (:mod:`ser_fast.backends.measured`).

    Args:
        gpu: a GPU's index, None for torch's current one. ``SER_FAST_BACKEND=reference`` turns all kernels off.
    """
    known = state.current.entries
    if gpu not in known:
        entry = {} if os.environ.get("SER_FAST_BACKEND") == "reference" else _entry(gpu)
        listed = {path for *_, order in measured.orders(entry) for path in order}
        known[gpu] = entry, tuple(name for name in measured.BACKENDS if name in listed and build.runs(name, gpu))
    return known[gpu]


def _entry(gpu: int | None) -> dict:
    capability = build.capability(gpu)
    if not capability:
        return {}
    found, _ = tuned.read(torch.device("cuda", gpu))
    if found:
        return {"gpu": found["key"]["name"], **found["choices"]}
    return measured.read(measured.FILE).get(capability, {})


@constant_in_graphs  # a compiled graph cannot hold a query of the GPU
def _path(
    backend: str, op: str, gpu: int | None, dtype: torch.dtype, tf32: bool, hidden_size: int | None, alone: bool
) -> str:
    """Return the path of a call: that of the chosen backend, or for "auto" the fastest that is known.

    Raises:
        ValueError: the GPU cannot run the chosen backend.
    """
    known, call = state.current.paths, (backend, op, gpu, dtype, tf32, hidden_size, alone)
    if call not in known:
        if backend == "auto":
            entry, here = measured_on(gpu)
            name = "tf32" if tf32 else "float32" if dtype == torch.int16 else str(dtype).removeprefix("torch.")
            order = [path for path in measured.order(entry, op, name, hidden_size) if path in ("torch", *here)]
            _hint(gpu, entry)
        else:
            order = [backend]
            why = build.capability(gpu) and build.refused(backend, gpu)
            if why:
                raise ValueError(f"backend is '{backend}', but {why}")
        known[call] = _first_of(order, op, gpu, dtype, hidden_size, alone)
    return known[call]


def _hint(gpu: int | None, entry: dict) -> None:
    """Name ``ser-fast tune`` once, in the first call on an untuned GPU that could run kernels that are installed."""
    now, get = state.current, os.environ.get
    unwanted = tuned.path() is None or get("SER_FAST_BACKEND") == "reference" or get("RANK", "0") != "0"
    if now.hinted or entry or unwanted or now.packaged or _torch_compat.tracing() or not build.capability(gpu):
        return
    if any(build.runs(name, gpu) for name in measured.BACKENDS):
        now.hinted = True
        sentence = (
            "`ser-fast tune` proves the kernels of ser_fast on this GPU and enables the faster ones in 2 minutes"
        )
        warnings.warn(f"{sentence}; SER_FAST_TUNED=0 silences this", stacklevel=_stacklevel())


def _stacklevel() -> int:
    """Return the stacklevel, for the calling function, of the first frame outside ser_fast and torch."""
    frame, level, folders = sys._getframe(1), 1, (PACKAGE, os.path.dirname(torch.__file__) + os.sep)
    while frame.f_back and frame.f_code.co_filename.startswith(folders):
        frame, level = frame.f_back, level + 1
    return level


def path_on_cuda(op: str, gpu: int | None, dtype: torch.dtype, hidden_size: int | None, alone: bool = False) -> str:
    """Return "cuda", "triton" or "torch" for an op on CUDA tensors.

    Args:
        alone: True if the op itself is called rather than a module; its "torch" is the reference.
    """
    if op not in CUDA_DTYPES:
        return "torch"
    tf32 = op == "gru" and dtype == torch.float32 and tf32_allowed()
    return _path(state.current.on_cuda, op, gpu, dtype, tf32, hidden_size, alone)


def _first_of(
    paths: list[str], op: str, gpu: int | None, dtype: torch.dtype, hidden_size: int | None, alone: bool
) -> str:
    """Return the first path that can run the call. The GRU's op alone has no torch path; Triton's can stream W_hh."""
    for path in paths:
        if path == "torch":
            serves = not (alone and op == "gru")
        elif path == "triton":
            fits = alone or hidden_size is None or triton_gru_plan(hidden_size, dtype).resident
            serves = fits and dtype in TRITON_DTYPES
        else:
            serves = dtype in CUDA_DTYPES[op] and (hidden_size is None or fits_on_chip(hidden_size, dtype, gpu))
        if serves:
            return path
    return "torch"


def _too_few(steps: int | None, dtype: torch.dtype, hidden_size: int | None) -> bool:
    """Return whether a GRU that records a gradient has fewer steps than pay for our kernels on CPU."""
    precision = str(dtype).removeprefix("torch.")
    return steps is not None and steps < state.current.rules.steps(precision, hidden_size)


def triton_gru_plan(hidden_size: int, dtype: torch.dtype):
    """Return the plan of Triton's GRU kernels for this size."""
    return importlib.import_module("ser_fast.kernels.gru").plan(hidden_size, dtype, tf32_allowed())


def select(
    op: str,
    device: str | torch.device = "cpu",
    steps: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    hidden_size: int | None = None,
) -> str:
    """Return the backend that runs an op: "compiled", "cuda", "triton", "torch" or "reference".

    "torch" is the path of ``nn.GRU``. ``ser_fast.GRU(reset_after=True)`` takes it by ``RULES`` for few steps with
    a gradient and where no kernel was built; on a GPU also unless our kernels are chosen, or were measured to be
    faster for this precision and hidden size, and W_hh fits on chip. A frame or a transform too large for a block of
    the CUDA kernels runs on the reference even where this returns "cuda".

    Args:
        op: one of ``OPS``.
        device: device of the tensors.
        steps: number of time steps of the GRU; None for many.
        dtype: dtype of the tensors.
        hidden_size: hidden size of the GRU; None if it does not matter.

    Raises:
        ValueError: ``op`` is not an op.

    Example:
        >>> select("gru", "cpu", steps=1)
        'torch'
    """
    if op not in OPS:
        raise ValueError(f"op is '{op}'; it must be one of {', '.join(OPS)}")
    device = torch.device(device)
    kind = device.type
    if kind == "cuda" and not (state.current.on_cuda == "auto" and steps == 1):
        path = path_on_cuda(op, device.index, dtype, hidden_size)
        if path != "torch":
            return path
    if op == "gru" and (kind != "cpu" or not state.current.loaded or _too_few(steps, dtype, hidden_size)):
        return "torch"
    return "compiled" if kind == "cpu" and state.current.loaded else "reference"

"""Text of ``ser-fast info``: versions, built and loaded kernels, the backend of each op, plans of a GRU."""

import itertools
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ser_fast._version import __version__
from ser_fast.backends import build, dispatch, measured, state, tuned

UNTESTED = "not yet run on a GPU"


def info() -> dict:
    """Return everything that ``ser-fast info`` prints, as plain values."""
    built = build.build_info()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        "ser_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{state.current.instruction_set or torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can see",
        **{f"tensors on {device}": what for device, what in what_runs().items()},
        "built": f"with {built['compiler']}{_of(built)}" if built["compiled"] else f"no: {built['reason']}",
        "loaded": "yes" if state.current.loaded else f"no: {state.current.reason}",
        "cuda kernels": _cuda(built),
        "triton kernels": f"{_standing('triton')}; {_triton()}",
        "SER_FAST_CPU": os.environ.get("SER_FAST_CPU", "unset (the best)"),
        "SER_FAST_BACKEND": os.environ.get("SER_FAST_BACKEND", "unset (auto)"),
        tuned.VARIABLE: os.environ.get(tuned.VARIABLE, f"unset ({tuned.path()})"),
        **{f"tuned, {device}": tuned.described(device) for device in ["cpu", *map("cuda:{}".format, _gpus())]},
        "backends": _selected(devices),
        "measured": measured.described(measured.read(measured.FILE)),
    }


def _selected(devices: list[str]) -> dict[str, str]:
    hinted, state.current.hinted = state.current.hinted, True  # the hint is for calls
    try:
        return {f"{op} on {device}": _select(op, device) for op in dispatch.OPS for device in devices}
    finally:
        state.current.hinted = hinted


def _select(op: str, device: str) -> str:
    try:
        return dispatch.select(op, device)
    except ValueError as error:  # the GPU cannot run the backend that is chosen
        return f"none: {error}"


def what_runs() -> dict[str, str]:
    """Return the kernels that run the tensors of each device, with the reason if they are torch's operators."""
    compiled = f"the compiled kernels, for {state.current.instruction_set}"
    found = {"cpu": compiled if state.current.loaded else f"torch's operators: {state.current.reason}"}
    if torch.cuda.is_available():
        return found | {f"cuda:{gpu}": _on_gpu(gpu) for gpu in _gpus()}
    other = torch.accelerator.current_accelerator(check_available=True)
    return found | ({other.type: "torch's operators: there are no kernels for it"} if other else {})


def _gpus() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


def _on_gpu(gpu: int) -> str:
    if state.current.on_cuda != "auto":
        why = build.refused(state.current.on_cuda, gpu)
        if why:
            return f"none: the {state.current.on_cuda} kernels are chosen, but {why}"
        standing = _standing(state.current.on_cuda, gpu)
        return f"the {state.current.on_cuda} kernels, {standing}; torch's operators for unsupported calls"
    reasons: dict[tuple, list[str]] = {}
    for backend in measured.BACKENDS:
        why = build.missing(backend) or build.refused(backend, gpu)
        reasons.setdefault((why and why.removesuffix("."), _standing(backend, gpu)), []).append(backend)
    said = [
        f"{' and '.join(names)} refused, {why}" if why else
        f"SER_FAST_BACKEND={' or '.join(names)} chooses kernels, {standing}"
        for (why, standing), names in reasons.items()
    ]  # fmt: skip
    entry, here = dispatch.measured_on(gpu)
    fastest = f"by size what was fastest on {entry['gpu']}, {', '.join(here)} or " if here else ""
    return f"{fastest}torch's operators: {'; '.join(said)}"


def _standing(backend: str, gpu: int | None = None) -> str:
    """Return the ops that the backend's kernels were tested for: on every measured GPU, or on GPUs like this one."""
    said = []
    for capability, ops in measured.proven(measured.read(measured.FILE), backend).items():
        if gpu is None or capability == build.capability(gpu):
            said.append(_tested(f"tested on {capability}", ops))
    entry = None if gpu is None else tuned.read(torch.device("cuda", gpu))[0]
    if entry and (ops := measured.proven({"": entry["choices"]}, backend).get("")):
        said = [_tested("tested on this GPU", ops)]
    return ", ".join(said) or UNTESTED


def _tested(where: str, ops: list[str]) -> str:
    rest = [op for op in dispatch.CUDA_DTYPES if op not in ops]
    return f"{where} for {', '.join(ops)}" + (f", {UNTESTED} for {', '.join(rest)}" if rest else "")


def _of(built: dict) -> str:
    return f", from commit {built['commit']}" if built.get("commit") else ""


def _cuda(built: dict) -> str:
    if not built.get("cuda_archs"):
        return built["cuda"]
    return f"{_standing('cuda')}; {built['cuda']}; SER_FAST_BACKEND=cuda selects them for CUDA tensors"


def _triton() -> str:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return build.TRITON_MISSING
    return f"triton {found}; SER_FAST_BACKEND=triton selects them for CUDA tensors"


def sentence() -> str:
    """Return the versions and the hardware behind measured numbers, as one line."""
    found = info()
    return f"ser_fast {found['ser_fast']}, torch {found['torch']}, {found['processor']}; GPU: {found['gpu']}"


def text() -> str:
    values = info()
    chosen, fastest = values.pop("backends"), values.pop("measured")
    chosen |= dispatch.RULES
    width = max(map(len, (*values, *chosen, *fastest)))
    lines = [f"{name:<{width}} {value}" for name, value in values.items()]
    for title, rows in (("which backend runs", chosen), ("what was measured fastest on a GPU", fastest)):
        lines += ["", title, *(f"{name:<{width}} {value}" for name, value in rows.items())]
    return "\n".join(lines)


# For machines without a GPU: bytes of shared memory per block, and clusters of 1, 2, 4 and 8 blocks that run at once,
# from the data sheets; the number of clusters that fit an H100 is an assumption.
KNOWN_GPUS = {
    "H100": (227 * 1024, 132, 66, 32, 15),
    "A100": (163 * 1024, 108, 0, 0, 0),
    "RTX 4090": (99 * 1024, 128, 0, 0, 0),
}
PLAN = ("width", "rows", "cluster", "threads", "stages", "tiles", "waves", "shared", "step")


def gru_plan(limits: torch.Tensor, shape: tuple[int, int, int, int], product: int, backward: bool) -> dict | None:
    """Return how the CUDA kernels run a GRU of shape (T, B, D, H) on a GPU, or None if W_hh does not fit.

    ``step`` is the estimated time of a step in microseconds: arithmetic, not a measurement. ``limits`` are those of
    :func:`ser_fast.backends.dispatch.gru_limits`.
    """
    _, batch, directions, hidden = shape
    values = torch.ops.ser_fast.gru_plan(limits, batch, directions, hidden, True, product, backward).tolist()
    plan = dict(zip(PLAN, (*map(int, values[:-1]), values[-1])))
    return plan if plan["width"] else None


def plans(shape: tuple[int, int, int, int]) -> str:
    """Return the text of ``ser-fast info --shape T B D H``: plans on this machine's GPUs, or on well-known ones."""
    for name, size in zip("TBDH", shape):
        if size < 1 or (name == "D" and size > 2):
            raise ValueError(f"--shape: {name} is {size}; it must be {'1 or 2' if name == 'D' else 'at least 1'}")
    if not state.current.loaded:
        raise ValueError(f"--shape needs the compiled kernels, but {state.current.reason}")
    frames, batch, directions, hidden = shape
    if torch.cuda.is_available() and build.build_info().get("cuda_archs"):
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        gpus = {
            f"{device}, {torch.cuda.get_device_name(device)}": dispatch.gru_limits(device.index) for device in devices
        }
    else:
        gpus = {f"{name}, from its data sheet": torch.tensor(limits) for name, limits in KNOWN_GPUS.items()}
    lines = [
        f"GRU of T={frames} B={batch} D={directions} H={hidden} by the CUDA kernels, {_standing('cuda')}.",
        "The time of a step is estimated from counts of products, reads and exchanges; it is not a measurement.",
    ]
    for name, limits in gpus.items():
        lines += ["", name]
        for (number, product), backward in itertools.product(enumerate(dispatch.GRU_PRODUCTS), (False, True)):
            plan = gru_plan(limits, shape, number, backward)
            lines += [f"  {product}, {'backward' if backward else 'forward'}", f"    {_described(plan, shape)}"]
    return "\n".join(lines)


def _described(plan: dict | None, shape: tuple[int, int, int, int]) -> str:
    if plan is None:
        return "torch, because W_hh does not fit on the chip"
    frames, _, directions, _ = shape
    tiles = plan["tiles"] * directions
    return (
        f"tiles: {tiles} of {plan['rows']} rows on {plan['cluster']} x {plan['threads']} threads; "
        f"W_hh as {plan['width']} units; {plan['shared'] / 1024:.0f} KB of shared memory a block; "
        f"waves: {plan['waves']}; about {plan['step']:.2f} us a step, {frames * plan['step'] / 1000:.2f} ms in all"
    )

"""What is installed: versions, what was built and loaded, which backend runs each op; how a GPU would run a GRU."""

import itertools
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import ser_fast
from ser_fast import backends
from ser_fast.backends import measured


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
        **{f"tensors on {device}": what for device, what in what_runs().items()},
        "built": f"with {build['compiler']}{_of(build)}" if build["compiled"] else f"no: {build['reason']}",
        "loaded": "yes" if backends.loaded else f"no: {backends.reason}",
        "cuda kernels": _cuda(build),
        "triton kernels": f"{_standing('triton')}; {_triton()}",
        "SER_FAST_CPU": os.environ.get("SER_FAST_CPU", "unset (the best)"),
        "SER_FAST_BACKEND": os.environ.get("SER_FAST_BACKEND", "unset (auto)"),
        "backends": {f"{op} on {device}": backends.select(op, device) for op in backends.OPS for device in devices},
        "measured": measured.described(measured.read(measured.FILE)),
    }


def what_runs() -> dict[str, str]:
    """What each device's tensors run on, and why where that is torch's operators."""
    compiled = f"the compiled kernels, for {backends.instruction_set}"
    found = {"cpu": compiled if backends.loaded else f"torch's operators: {backends.reason}"}
    if torch.cuda.is_available():
        return found | {f"cuda:{gpu}": _on_gpu(gpu) for gpu in range(torch.cuda.device_count())}
    other = torch.accelerator.current_accelerator(check_available=True)
    return found | ({other.type: "torch's operators: there are no kernels for it"} if other else {})


def _on_gpu(gpu: int) -> str:
    if backends.on_cuda != "auto":
        standing = _standing(backends.on_cuda, gpu)
        return f"the {backends.on_cuda} kernels, {standing}; torch's operators for what they leave out"
    reasons: dict[tuple, list[str]] = {}
    for backend in measured.BACKENDS:
        why = backends.missing(backend) or backends.refused(backend, gpu)
        reasons.setdefault((why and why.removesuffix("."), _standing(backend, gpu)), []).append(backend)
    said = [
        f"{' and '.join(names)} refused, {why}" if why else
        f"SER_FAST_BACKEND={' or '.join(names)} chooses kernels, {standing}"
        for (why, standing), names in reasons.items()
    ]  # fmt: skip
    entry, here = backends.measured_on(gpu)
    fastest = f"by size what was fastest on {entry['gpu']}, {', '.join(here)} or " if here else ""
    return f"{fastest}torch's operators: {'; '.join(said)}"


def _standing(backend: str, gpu: int | None = None) -> str:
    """Which ops the backend's kernels are proven for, and where: on all that was measured, or on GPUs like this."""
    said = []
    for capability, ops in measured.proven(measured.read(measured.FILE), backend).items():
        if gpu is not None and capability != backends.capability(gpu):
            continue
        rest = [op for op in backends.OPS if op not in ops]
        said.append(f"proven on {capability} for {', '.join(ops)}")
        said += [f"{backends.UNPROVEN} for {', '.join(rest)}"] if rest else []
    return ", ".join(said) or backends.UNPROVEN


def _of(build: dict) -> str:
    return f", from commit {build['commit']}" if build.get("commit") else ""


def _cuda(build: dict) -> str:
    if not build.get("cuda_archs"):
        return build["cuda"]
    return f"{_standing('cuda')}; {build['cuda']}; SER_FAST_BACKEND=cuda selects them for CUDA tensors"


def _triton() -> str:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return backends.TRITON_MISSING
    return f"triton {found}; SER_FAST_BACKEND=triton selects them for CUDA tensors"


def sentence() -> str:
    """What figures were measured with, in a line."""
    found = info()
    return f"ser_fast {found['ser_fast']}, torch {found['torch']}, {found['processor']}; GPU: {found['gpu']}"


def text() -> str:
    values = info()
    chosen, fastest = values.pop("backends"), values.pop("measured")
    lines = [f"{name:<24} {value}" for name, value in values.items()]
    chosen |= backends.RULES
    for title, rows in (("which backend runs", chosen), ("what was measured fastest on a GPU", fastest)):
        lines += ["", title, *(f"{name:<24} {value}" for name, value in rows.items())]
    return "\n".join(lines)


# Bytes of shared memory that a block may have, and clusters of 1, 2, 4 and 8 blocks that run at once, as the data
# sheets have it, for where there is no GPU; how many clusters fit an H100 at once is an assumption.
KNOWN_GPUS = {
    "H100": (227 * 1024, 132, 66, 32, 15),
    "A100": (163 * 1024, 108, 0, 0, 0),
    "RTX 4090": (99 * 1024, 128, 0, 0, 0),
}
PLAN = ("width", "rows", "cluster", "threads", "stages", "tiles", "waves", "shared", "step")


def gru_plan(limits: torch.Tensor, shape: tuple[int, int, int, int], product: int, backward: bool) -> dict | None:
    """How the CUDA kernels run a GRU of shape (T, B, D, H) on a GPU of these limits, or None if W_hh does not fit.

    ``step`` is the estimated time of a step in microseconds: arithmetic, not a measurement.
    """
    _, batch, directions, hidden = shape
    values = torch.ops.ser_fast.gru_plan(limits, batch, directions, hidden, True, product, backward).tolist()
    plan = dict(zip(PLAN, (*map(int, values[:-1]), values[-1])))
    return plan if plan["width"] else None


def plans(shape: tuple[int, int, int, int]) -> str:
    """What ``ser-fast info --shape T B D H`` prints: the plans on this machine's GPUs, or on well-known ones."""
    for name, size in zip("TBDH", shape):
        if size < 1 or (name == "D" and size > 2):
            raise ValueError(f"--shape: {name} is {size}; it must be {'1 or 2' if name == 'D' else 'at least 1'}")
    if not backends.loaded:
        raise ValueError(f"--shape needs the compiled kernels, but {backends.reason}")
    frames, batch, directions, hidden = shape
    if torch.cuda.is_available() and backends.build_info().get("cuda_archs"):
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        gpus = {
            f"{device}, {torch.cuda.get_device_name(device)}": backends.gru_limits(device.index) for device in devices
        }
    else:
        gpus = {f"{name}, as its data sheet has it": torch.tensor(limits) for name, limits in KNOWN_GPUS.items()}
    lines = [
        f"GRU of T={frames} B={batch} D={directions} H={hidden} by the CUDA kernels, {_standing('cuda')}.",
        "A step's time is estimated from counts of products, reads and exchanges; it is no measurement.",
    ]
    for name, limits in gpus.items():
        lines += ["", name]
        for (number, product), backward in itertools.product(enumerate(backends.GRU_PRODUCTS), (False, True)):
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

"""Part `pool`: attention pooling against eager torch, torch.compile and one-query attention."""

import itertools
from functools import partial

import torch
from bench_attention_pool import eager, one_query
from harness import check, step

from device.bench import Bench, Case, precisions
from ser_fast.functional import attention_pool
from ser_fast.tuning.checks import PRECISIONS

SIZES = [(64, 1000, 512), (64, 300, 256)]  # B, T and D; the first is larger than the L2 cache
COPIED = 1 << 30  # bytes of the copy
COMPILED = ("float32", "bfloat16")  # torch.compile takes seconds per case


def pool(bench: Bench) -> list[Case]:
    """Time attention pooling, and its memory traffic as a percentage of a copy's bandwidth."""
    sizes = [(3, 20, 16)] if bench.rehearse else SIZES
    dtypes = {name: PRECISIONS[name][0] for name in precisions(bench) if name != "tf32"}
    source = torch.randn((1 << 20 if bench.rehearse else COPIED) // 4, device=bench.device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / bench.time(lambda: target.copy_(source))
    return [
        Case(
            f"{name} B={size[0]} T={size[1]} D={size[2]}, {mode}",
            partial(pool_case, bench, size, name, dtype, mode, bandwidth),
        )
        for (name, dtype), size, mode in itertools.product(dtypes.items(), sizes, ("training", "inference"))
    ]


def pool_case(
    bench: Bench, size: tuple[int, int, int], precision: str, dtype: torch.dtype, mode: str, bandwidth: float
) -> dict:
    """Time one size in one precision."""
    batch, frames, width = size
    h = torch.randn(batch, frames, width, device=bench.device, dtype=dtype, requires_grad=mode == "training")
    w = (torch.randn(width, device=bench.device) / width**0.5).to(dtype).requires_grad_(mode == "training")
    grad = torch.randn(batch, width, device=bench.device, dtype=dtype)
    calls = bench.ours(lambda: attention_pool(h, w)[0]) | {
        "eager torch": lambda: eager(h, w, None),
        "one-query SDPA": lambda: one_query(h, w, None),
    }
    if not bench.rehearse and size == SIZES[0] and precision in COMPILED:
        compiled = torch.compile(eager, dynamic=False)
        calls["torch.compile"] = lambda: compiled(h, w, None)
    steps = {name: step(mode, call, [h, w], grad) for name, call in calls.items()}
    wide = [tensor.detach().double().requires_grad_(mode == "training") for tensor in (h, w)]
    exact = step(mode, lambda: eager(*wide, None), wide, grad.double())()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    names = bench.ours(lambda: None)
    checks = {name: lambda name=name: check("all", steps[name](), exact, tolerance) for name in names}
    found = bench.compare(steps, checks, op="attention_pool", precision=precision, tolerance=tolerance, mode=mode)
    moved = (3 if mode == "training" else 1) * h.nbytes
    shares = {name: 100 * moved / value / bandwidth for name, value in found["seconds"].items() if "ours" in name}
    return found | {"% of the copy bandwidth": shares, "copy, bytes a second": bandwidth}

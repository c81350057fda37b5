"""Frame attention pooling in Triton: an online softmax over time, split over programs and merged.

In the forward a program reads a run of a row's frames once and keeps the scores' maximum, their sum of exponentials
and the weighted sum of frames; a second, small kernel merges the runs and turns scores into weights. In the backward
a program reads a run once and writes its gradient once. Sums are in float32 and in a fixed order.

The launchers write into outputs that the caller has allocated and whose arguments it has checked.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements of h that a program holds at once
WARPS = 4
RUN = 64  # frames of a program, at least
RUNS = 64  # programs of a row, at most
MERGED = {"RUNS": RUNS, "BLOCK_T": 256, "BLOCK_D": 256}
COUNTS = ("T", "has_lengths", "has_grad_weights", "run", "runs")


@triton.jit
def _length(lengths, b, T, has_lengths):
    length = tl.load(lengths + b, mask=has_lengths != 0, other=T).to(tl.int64)
    return tl.minimum(tl.maximum(length, 0), T).to(tl.int32)


@triton.jit(do_not_specialize=COUNTS)
def _forward(
    h, w, lengths, scores, partial, T, D, h_b, h_t, run, has_lengths, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr
):
    """``partial`` is [B, runs, 2 + D]: the maximum, the sum of exponentials and the weighted sum of each run."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = _length(lengths, b, T, has_lengths)
    d = tl.arange(0, BLOCK_D)
    real = d < D
    weight = tl.load(w + d, mask=real, other=0).to(tl.float32)
    h += b * h_b + d[None, :]
    top = tl.full([], -float("inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    pooled = tl.zeros([BLOCK_D], tl.float32)
    for first in range(part * run, tl.minimum((part + 1) * run, length), BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        valid = t < length
        frames = tl.load(h + t.to(tl.int64)[:, None] * h_t, mask=valid[:, None] & real[None, :], other=0).to(
            tl.float32
        )
        score = tl.sum(frames * weight[None, :], 1)
        tl.store(scores + b * T + t, score, mask=valid)
        score = tl.where(valid, score, -float("inf"))
        highest = tl.maximum(top, tl.max(score, 0))
        base = tl.where(highest == -float("inf"), 0, highest)
        scale = tl.exp(top - base)
        weights = tl.where(valid, tl.exp(score - base), 0)
        total = total * scale + tl.sum(weights, 0)
        pooled = pooled * scale + tl.sum(frames * weights[:, None], 0)
        top = highest
    partial += (b * tl.num_programs(1) + part) * (2 + D)
    tl.store(partial, top)
    tl.store(partial + 1, total)
    tl.store(partial + 2 + d, pooled, mask=real)


@triton.jit(do_not_specialize=COUNTS)
def _merge(
    lengths, scores, partial, pooled, weights, T, D, runs, has_lengths, RUNS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs along the second axis share the weights and the width of one row."""
    b, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    length = _length(lengths, b, T, has_lengths)
    partial += b * runs * (2 + D)
    number = tl.arange(0, RUNS)
    top = tl.load(partial + number * (2 + D), mask=number < runs, other=-float("inf"))
    total = tl.load(partial + number * (2 + D) + 1, mask=number < runs, other=0)
    highest = tl.max(top, 0)
    # A run past the row's length has no maximum and no sum; a row of length 0 has none at all.
    scale = tl.where(top == -float("inf"), 0, tl.exp(top - highest))
    total = tl.sum(total * scale, 0)
    inverse = tl.where(length > 0, 1 / total, 0)
    for first in range(part * BLOCK_D, D, parts * BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        sums = tl.zeros([BLOCK_D], tl.float32)
        for one in range(runs):
            best = tl.load(partial + one * (2 + D))
            shrunk = tl.where(best == -float("inf"), 0, tl.exp(best - highest))
            sums += tl.load(partial + one * (2 + D) + 2 + d, mask=d < D, other=0) * shrunk
        tl.store(pooled + b * D + d, (sums * inverse).to(pooled.dtype.element_ty), mask=d < D)
    for first in range(part * BLOCK_T, T, parts * BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        score = tl.load(scores + b * T + t, mask=t < length, other=0)
        alpha = tl.where(t < length, tl.exp(score - highest) * inverse, 0)
        tl.store(weights + b * T + t, alpha.to(weights.dtype.element_ty), mask=t < T)


@triton.jit(do_not_specialize=COUNTS)
def _backward(
    grad_pooled, grad_weights, h, w, pooled, weights, mean, lengths, grad_h, partial,
    T, D, h_b, h_t, run, has_lengths, has_grad_weights, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``mean`` is Σ α e of each row, e the weights' gradient; ``partial`` [B, runs, D] the runs' shares of dw."""
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = _length(lengths, b, T, has_lengths)
    d = tl.arange(0, BLOCK_D)
    real = d < D
    weight = tl.load(w + d, mask=real, other=0).to(tl.float32)
    g = tl.load(grad_pooled + b * D + d, mask=real, other=0).to(tl.float32)
    center = tl.sum(g * tl.load(pooled + b * D + d, mask=real, other=0).to(tl.float32), 0)
    center += tl.load(mean + b, mask=has_grad_weights != 0, other=0)
    h += b * h_b + d[None, :]
    grad_h += b * T * D + d[None, :]
    grad_w = tl.zeros([BLOCK_D], tl.float32)
    for first in range(part * run, tl.minimum((part + 1) * run, T), BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        valid = t < length
        row = t.to(tl.int64)[:, None]
        frames = tl.load(h + row * h_t, mask=valid[:, None] & real[None, :], other=0).to(tl.float32)
        alpha = tl.load(weights + b * T + t, mask=valid, other=0).to(tl.float32)
        along = tl.sum(frames * g[None, :], 1)
        along += tl.load(grad_weights + b * T + t, mask=t < length * has_grad_weights, other=0).to(tl.float32)
        score = tl.where(valid, alpha * (along - center), 0)
        grad = alpha[:, None] * g[None, :] + score[:, None] * weight[None, :]
        shown = (t < T)[:, None] & real[None, :]
        tl.store(grad_h + row * D, tl.where(valid[:, None], grad, 0).to(grad_h.dtype.element_ty), mask=shown)
        grad_w += tl.sum(score[:, None] * frames, 0)
    tl.store(partial + (b * tl.num_programs(1) + part) * D + d, grad_w, mask=real)


def plan(frames: int, width: int) -> tuple[dict, int, int]:
    """Return block sizes, the frames of a run and the runs of a row; no blocks if rows are too wide to be held.

    Widths that are not a multiple of 16 cannot be read in vectors, which takes more registers.
    """
    block = max(64, triton.next_power_of_2(width))
    tile = max(1, (TILE // 2 if width % 16 else TILE) // block)
    run = triton.cdiv(max(RUN, triton.cdiv(frames, RUNS)), tile) * tile
    return {"BLOCK_T": tile, "BLOCK_D": block} if block <= TILE else {}, run, triton.cdiv(frames, run)


def fits(width: int) -> bool:
    """Return whether a program can hold frames of this width."""
    return bool(plan(1, width)[0])


def _rows(h: Tensor) -> Tensor:
    """Return h with contiguous, aligned features; rows and frames keep any strides."""
    aligned = h.data_ptr() % 16 == 0 and (h.shape[2] % 16 or not any(step % 16 for step in h.stride()[:2]))
    return h if h.stride(2) == 1 and aligned else h.clone(memory_format=torch.contiguous_format)


def _lengths(lengths: Tensor | None, like: Tensor) -> Tensor:
    """Return lengths as int64; an empty tensor stands for lengths that are not read."""
    return like.new_empty(0, dtype=torch.int64) if lengths is None else lengths.to(torch.int64).contiguous()


def attention_pool(
    h: Tensor, w: Tensor, lengths: Tensor | None, pooled: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch ``ser_fast::attention_pool`` for float32, float16 and bfloat16, for widths that :func:`fits`.

    Args:
        pooled, weights: outputs ``[B, D]`` and ``[B, T]``, contiguous, which are returned.
    """
    batch, frames, width = h.shape
    blocks, run, runs = plan(frames, width)
    h, given = _rows(h), int(lengths is not None)
    lengths = _lengths(lengths, h)
    scores = h.new_empty(batch, frames, dtype=torch.float32)
    partial = h.new_empty(batch, runs, 2 + width, dtype=torch.float32)
    with torch.cuda.device_of(h):
        strides = h.stride()[:2]
        _forward[batch, runs](
            h,
            w.contiguous(),
            lengths,
            scores,
            partial,
            frames,
            width,
            *strides,
            run,
            given,
            **blocks,
            num_warps=WARPS,
        )
        parts = max(triton.cdiv(frames, MERGED["BLOCK_T"]), triton.cdiv(width, MERGED["BLOCK_D"]))
        _merge[batch, min(parts, RUNS)](
            lengths, scores, partial, pooled, weights, frames, width, runs, given, **MERGED, num_warps=WARPS
        )
    return pooled, weights


def attention_pool_backward(
    grad_pooled: Tensor,
    grad_weights: Tensor | None,
    h: Tensor,
    w: Tensor,
    pooled: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Launch ``ser_fast::attention_pool_backward`` for half precision and float32, for widths that :func:`fits`."""
    grad_h = h.new_empty(h.shape)
    batch, frames, width = h.shape
    blocks, run, runs = plan(frames, width)
    h, weights = _rows(h), weights.contiguous()
    mean = h.new_empty(0, dtype=torch.float32)
    if grad_weights is not None:
        mean = (grad_weights.float() * weights).sum(1)
    flags = (int(lengths is not None), int(grad_weights is not None))
    partial = h.new_empty(batch, runs, width, dtype=torch.float32)
    with torch.cuda.device_of(h):
        _backward[batch, runs](
            grad_pooled.contiguous(), weights if grad_weights is None else grad_weights.contiguous(), h,
            w.contiguous(), pooled.contiguous(), weights, mean, _lengths(lengths, h), grad_h, partial,
            frames, width, *h.stride()[:2], run, *flags, **blocks, num_warps=WARPS,
        )  # fmt: skip
    return grad_h, partial.sum((0, 1)).to(w.dtype)


def configurations() -> Iterator[dict]:
    """Yield every kernel that :func:`plan` can choose, in the form that ahead-of-time compilation takes."""
    fixed = {"lengths": "*i64"} | dict.fromkeys(("scores", "partial", "mean"), "*fp32")
    powers = [64 << power for power in range(20) if plan(1, 64 << power)[0]]
    for kernel, dtype in itertools.product((_forward, _backward, _merge), ("*fp16", "*bf16", "*fp32")):
        names, first_number = kernel.arg_names, kernel.arg_names.index("T")
        for width in [64, 63] if kernel is _merge else [width for power in powers for width in (power, power - 1)]:
            constants = MERGED if kernel is _merge else plan(1, width)[0]
            numbers = [name for name in names[first_number:] if name not in constants]
            sizes = [name for name in numbers if name not in COUNTS]
            yield {
                "kernel": kernel,
                "signature": {name: fixed.get(name, dtype) for name in names[:first_number]}
                | dict.fromkeys(numbers, "i32")
                | dict.fromkeys(constants, "constexpr"),
                "constexprs": constants,
                "options": {"num_warps": WARPS},
                "aligned": [] if width % 16 else sizes,
            }

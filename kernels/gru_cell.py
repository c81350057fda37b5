"""Shared parts of the GRU's Triton kernels: activations, the rows of a program, and the addresses of their frames."""

import triton
import triton.language as tl

# Arguments whose values do not specialise a kernel.
COUNTS = ("T", "B", "has_b", "has_h0", "has_lengths", "packed", "save_gates")


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh by a polynomial near zero, as in activations.h, since (1 - e) / (1 + e) cancels there."""
    u = x * x
    p = -6.096714e-3 * u + 2.099718e-2
    p = p * u - 5.3850908e-2
    p = p * u + 1.333277e-1
    p = p * u - 3.3333328e-1
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.625, x + x * u * p, tl.where(x < 0, -far, far))


@triton.jit
def rows(lengths, starts, T, B, has_lengths, packed, ROWS: tl.constexpr):
    """Return this program's rows: their numbers, lengths, first frames if packed, and their direction."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < B
    start = tl.load(starts + row, mask=row < B * packed, other=0).to(tl.int64)
    length = tl.load(lengths + row, mask=row < B * has_lengths, other=T).to(tl.int64)
    length = tl.where(exists, tl.minimum(tl.maximum(length, 0), tl.maximum(T - start, 0)), 0).to(tl.int32)
    return row, length, start, tl.program_id(1)


@triton.jit
def within(step, length):
    """Return whether each row has a step of this number, [ROWS, 1]."""
    steps = tl.zeros_like(length) + step
    return ((steps >= 0) & (steps < length))[:, None]


@triton.jit
def place(step, where, strides):
    """Return the offset of each row's frame of a step in a [T, B, ...] or packed [N, ...] tensor, [ROWS, 1].

    ``where`` comes from :func:`rows`; ``strides`` are T's and B's. Direction 1 begins at the row's own last frame;
    steps past the length lie as in direction 0.
    """
    row, length, start, direction = where
    frame = tl.where((direction == 1) & (step < length), length - 1 - step, step).to(tl.int64) + start
    return (frame * strides[0] + row.to(tl.int64) * strides[1])[:, None]


@triton.jit
def saved(step, valid, where, tensors, strides, H, has_h0):
    """Load the operands of a backward step: y's gradient, the state before the step, and its r, z, n and q.

    ``tensors`` are grad_y, y, gates and h0; ``strides`` those of the first three.
    """
    grad_y, y, gates, h0 = tensors
    length = where[1]
    begun = (tl.zeros_like(length) + step < has_h0)[:, None]
    g = tl.load(grad_y + place(step, where, strides[0]), mask=valid, other=0)
    before = tl.load(y + place(step - 1, where, strides[1]), mask=valid & within(step - 1, length), other=0)
    before += tl.load(h0, mask=valid & begun, other=0)
    gates += place(step, where, strides[2])
    r = tl.load(gates, mask=valid, other=0)
    z = tl.load(gates + H, mask=valid, other=0)
    n = tl.load(gates + 2 * H, mask=valid, other=0)
    q = tl.load(gates + 3 * H, mask=valid, other=0)
    return g, before, r, z, n, q

"""The GRU recurrence in Triton for any hidden size: W_hh is read from the L2 cache in every step.

The states pass from step to step through a float32 scratch in global memory, which only the program's own threads
touch, between barriers. float32 products are three of tf32, or one if the launcher allows tf32.
"""

import triton
import triton.language as tl

from .gru_cell import COUNTS, place, rows, saved, sigmoid, tanh, within


@triton.jit
def _product(
    x, w, n, H, rows_valid, w_n_stride, w_k_stride, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return x @ W [ROWS, BLOCK_N]: x holds pointers to the rows [ROWS, 1], W [K, N] is addressed by its strides."""
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for first in range(0, H, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        part = tl.load(x + k[None, :], mask=rows_valid & (k < H)[None, :], other=0).to(w.dtype.element_ty)
        weight = tl.load(
            w + k[:, None] * w_k_stride + n[None, :] * w_n_stride, mask=(k < H)[:, None] & (n < H)[None, :], other=0
        )
        total = tl.dot(part, weight, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=COUNTS)
def forward(
    gx, w_hh, b_hh, h0, lengths, starts, y, h_n, gates, scratch,
    T, B, H, gx_t, gx_b, y_t, y_b, gates_t, gates_b, has_b, has_h0, has_lengths, packed, save_gates,
    RESET_AFTER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``scratch`` is float32 [3, D, B, H]: the states of even and odd steps, or the state, q and z."""
    kind: tl.constexpr = y.dtype.element_ty
    where = rows(lengths, starts, T, B, has_lengths, packed, ROWS)
    row, length, _, direction = where
    steps = tl.max(length, 0)
    until = length * packed + T * (1 - packed)  # past a row's length padded frames are 0
    size = H.to(tl.int64) * H
    w_hh += direction * 3 * size
    b_hh += direction * 3 * H
    gx += direction * 3 * H
    y += direction * H
    gates += direction * 4 * H
    state = (direction * B + row.to(tl.int64))[:, None] * H
    plane = tl.num_programs(1) * B.to(tl.int64) * H
    exists = (row < B)[:, None]
    for first in range(0, H, BLOCK_N):
        unit = (first + tl.arange(0, BLOCK_N))[None, :]
        tile = exists & (unit < H)
        h = tl.load(h0 + state + unit, mask=tile & (row < B * has_h0)[:, None], other=0).to(tl.float32)
        tl.store(scratch + state + unit, h, mask=tile)
    tl.debug_barrier()
    for step in range(steps):
        valid = exists & within(step, length)
        at_gx = gx + place(step, where, (gx_t, gx_b))
        at_y = y + place(step, where, (y_t, y_b))
        at_gates = gates + place(step, where, (gates_t, gates_b))
        old = scratch + state
        new = old
        if RESET_AFTER:
            old += (step % 2) * plane
            new += (1 - step % 2) * plane
        for first in range(0, H, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            unit = n[None, :]
            real = unit < H
            biased = unit < H * has_b
            shown = exists & real & within(step, until)
            kept = exists & real & within(step, until * save_gates)
            h = tl.load(old + unit, mask=exists & real, other=0)
            r = _product(old, w_hh, n, H, exists, H, 1, BLOCK_N, BLOCK_K, ROWS, PRECISION)
            r += tl.load(b_hh + unit, mask=biased, other=0).to(tl.float32)
            r = sigmoid(r + tl.load(at_gx + unit, mask=valid & real, other=0).to(tl.float32))
            z = _product(old, w_hh + size, n, H, exists, H, 1, BLOCK_N, BLOCK_K, ROWS, PRECISION)
            z += tl.load(b_hh + H + unit, mask=biased, other=0).to(tl.float32)
            z = sigmoid(z + tl.load(at_gx + H + unit, mask=valid & real, other=0).to(tl.float32))
            if RESET_AFTER:
                q = _product(old, w_hh + 2 * size, n, H, exists, H, 1, BLOCK_N, BLOCK_K, ROWS, PRECISION)
                q += tl.load(b_hh + 2 * H + unit, mask=biased, other=0).to(tl.float32)
                candidate = tl.load(at_gx + 2 * H + unit, mask=valid & real, other=0).to(tl.float32)
                candidate = tanh(candidate + r * q)
                h = tl.where(valid, z * h + (1 - z) * candidate, h)
                tl.store(new + unit, h, mask=exists & real)
                tl.store(at_y + unit, tl.where(valid, h, 0).to(kind), mask=shown)
                tl.store(at_gates + 2 * H + unit, tl.where(valid, candidate, 0).to(kind), mask=kept)
            else:
                q = r * h
                tl.store(scratch + plane + state + unit, q, mask=exists & real)
                tl.store(scratch + 2 * plane + state + unit, z, mask=exists & real)
            tl.store(at_gates + unit, tl.where(valid, r, 0).to(kind), mask=kept)
            tl.store(at_gates + H + unit, tl.where(valid, z, 0).to(kind), mask=kept)
            tl.store(at_gates + 3 * H + unit, tl.where(valid, q, 0).to(kind), mask=kept)
        tl.debug_barrier()
        if not RESET_AFTER:
            for first in range(0, H, BLOCK_N):
                n = first + tl.arange(0, BLOCK_N)
                unit = n[None, :]
                real = unit < H
                shown = exists & real & within(step, until)
                kept = exists & real & within(step, until * save_gates)
                candidate = _product(
                    scratch + plane + state, w_hh + 2 * size, n, H, exists, H, 1, BLOCK_N, BLOCK_K, ROWS, PRECISION
                )
                candidate += tl.load(b_hh + 2 * H + unit, mask=unit < H * has_b, other=0).to(tl.float32)
                candidate += tl.load(at_gx + 2 * H + unit, mask=valid & real, other=0).to(tl.float32)
                candidate = tanh(candidate)
                h = tl.load(old + unit, mask=exists & real, other=0)
                z = tl.load(scratch + 2 * plane + state + unit, mask=exists & real, other=0)
                h = tl.where(valid, z * h + (1 - z) * candidate, h)
                tl.store(new + unit, h, mask=exists & real)
                tl.store(at_y + unit, tl.where(valid, h, 0).to(kind), mask=shown)
                tl.store(at_gates + 2 * H + unit, tl.where(valid, candidate, 0).to(kind), mask=kept)
            tl.debug_barrier()
    last = scratch + state
    if RESET_AFTER:
        last += (steps % 2) * plane
    for first in range(0, H, BLOCK_N):
        unit = (first + tl.arange(0, BLOCK_N))[None, :]
        tile = exists & (unit < H)
        tl.store(h_n + state + unit, tl.load(last + unit, mask=tile, other=0).to(kind), mask=tile)
        zero = tl.zeros([ROWS, BLOCK_N], kind)
        for step in range(steps, T * (1 - packed)):
            tl.store(y + place(step, where, (y_t, y_b)) + unit, zero, mask=tile)
            at = gates + place(step, where, (gates_t, gates_b)) + unit
            for part in range(4):
                tl.store(at + part * H, zero, mask=tile & within(step, until * save_gates))


@triton.jit(do_not_specialize=COUNTS)
def backward(
    grad_y, grad_h_n, y, gates, w_hh, h0, lengths, starts, grad_gx, grad_q, grad_h0, scratch,
    T, B, H, gy_t, gy_b, y_t, y_b, gates_t, gates_b, gx_t, gx_b, q_t, q_b, has_h0, has_lengths, packed,
    RESET_AFTER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``scratch`` is float32 [D, B, H]: the state's gradient. Products read grad_gx and grad_q as just written."""
    kind: tl.constexpr = y.dtype.element_ty
    where = rows(lengths, starts, T, B, has_lengths, packed, ROWS)
    row, length, _, direction = where
    steps = tl.max(length, 0)
    until = length * packed + T * (1 - packed)  # past a row's length padded frames are 0
    size = H.to(tl.int64) * H
    w_hh += direction * 3 * size
    y += direction * H
    grad_y += direction * H
    gates += direction * 4 * H
    grad_gx += direction * 3 * H
    grad_q += direction * H
    state = (direction * B + row.to(tl.int64))[:, None] * H
    strides = ((gy_t, gy_b), (y_t, y_b), (gates_t, gates_b))
    scratch += state
    h0 += state
    exists = (row < B)[:, None]
    for first in range(0, H, BLOCK_N):
        unit = (first + tl.arange(0, BLOCK_N))[None, :]
        tile = exists & (unit < H)
        tl.store(scratch + unit, tl.load(grad_h_n + state + unit, mask=tile, other=0).to(tl.float32), mask=tile)
    for late in range(steps):
        step = steps - 1 - late
        valid = exists & within(step, length)
        at_gx = grad_gx + place(step, where, (gx_t, gx_b))
        at_q = grad_q + place(step, where, (q_t, q_b))
        tl.debug_barrier()
        for first in range(0, H, BLOCK_N):
            unit = (first + tl.arange(0, BLOCK_N))[None, :]
            tile = valid & (unit < H)
            shown = exists & (unit < H) & within(step, until)
            tensors = (grad_y + unit, y + unit, gates + unit, h0 + unit)
            g, before, r, z, n, q = saved(step, tile, where, tensors, strides, H, has_h0)
            grad = tl.load(scratch + unit, mask=tile, other=0) + g.to(tl.float32)
            z, n = z.to(tl.float32), n.to(tl.float32)
            pre_n = grad * (1 - z) * (1 - n * n)
            pre_z = grad * (before.to(tl.float32) - n) * z * (1 - z)
            tl.store(scratch + unit, grad * z, mask=tile)
            tl.store(at_gx + H + unit, tl.where(tile, pre_z, 0).to(kind), mask=shown)
            tl.store(at_gx + 2 * H + unit, tl.where(tile, pre_n, 0).to(kind), mask=shown)
            if RESET_AFTER:
                r = r.to(tl.float32)
                pre_r = pre_n * q.to(tl.float32) * r * (1 - r)
                tl.store(at_gx + unit, tl.where(tile, pre_r, 0).to(kind), mask=shown)
                tl.store(at_q + unit, tl.where(tile, pre_n * r, 0).to(kind), mask=shown)
        tl.debug_barrier()
        if not RESET_AFTER:
            for first in range(0, H, BLOCK_N):
                k = first + tl.arange(0, BLOCK_N)
                unit = k[None, :]
                tile = valid & (unit < H)
                through = _product(
                    at_gx + 2 * H, w_hh + 2 * size, k, H, valid, 1, H, BLOCK_N, BLOCK_K, ROWS, PRECISION
                )
                tensors = (grad_y + unit, y + unit, gates + unit, h0 + unit)
                g, before, r, z, n, q = saved(step, tile, where, tensors, strides, H, has_h0)
                r = r.to(tl.float32)
                pre_r = through * before.to(tl.float32) * r * (1 - r)
                shown = exists & (unit < H) & within(step, until)
                tl.store(at_gx + unit, tl.where(tile, pre_r, 0).to(kind), mask=shown)
                tl.store(scratch + unit, tl.load(scratch + unit, mask=tile, other=0) + through * r, mask=tile)
            tl.debug_barrier()
        for first in range(0, H, BLOCK_N):
            k = first + tl.arange(0, BLOCK_N)
            unit = k[None, :]
            tile = valid & (unit < H)
            passed = tl.load(scratch + unit, mask=tile, other=0)
            passed += _product(at_gx, w_hh, k, H, valid, 1, H, BLOCK_N, BLOCK_K, ROWS, PRECISION)
            passed += _product(at_gx + H, w_hh + size, k, H, valid, 1, H, BLOCK_N, BLOCK_K, ROWS, PRECISION)
            if RESET_AFTER:
                passed += _product(at_q, w_hh + 2 * size, k, H, valid, 1, H, BLOCK_N, BLOCK_K, ROWS, PRECISION)
            tl.store(scratch + unit, passed, mask=tile)
    tl.debug_barrier()
    for first in range(0, H, BLOCK_N):
        unit = (first + tl.arange(0, BLOCK_N))[None, :]
        tile = exists & (unit < H)
        tl.store(grad_h0 + state + unit, tl.load(scratch + unit, mask=tile, other=0).to(kind), mask=tile)
        zero = tl.zeros([ROWS, BLOCK_N], kind)
        for step in range(steps, T * (1 - packed)):
            at = grad_gx + place(step, where, (gx_t, gx_b)) + unit
            for part in range(3):
                tl.store(at + part * H, zero, mask=tile)
            if RESET_AFTER:
                tl.store(grad_q + place(step, where, (q_t, q_b)) + unit, zero, mask=tile)

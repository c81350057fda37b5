"""The GRU recurrence in Triton: kernels that keep W_hh on chip, and their launchers.

One program takes ``ROWS`` rows of the batch in one direction and computes all their steps. If W_hh fits
(:func:`plan`), it stays in registers from the first step to the last, and only gx is read and y written on the way;
otherwise the kernels of ``gru_streamed`` run. Hidden sizes are padded to a multiple of 16. The state is float32
throughout. float32 inputs are multiplied as three tf32 products, or as one if the caller allows tf32.

The launchers write into outputs that the caller has allocated and whose arguments it has checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from . import gru_streamed
from .gru_cell import COUNTS, place, rows, saved, sigmoid, tanh, within

ROWS = 16  # smallest number of rows of a tensor core product
HALF = (torch.float16, torch.bfloat16)


@triton.jit
def _load_weights(w, size, mask):
    """Load W_hh's three tiles, as integers: the cast makes the compiler keep them in registers across a loop."""
    kind: tl.constexpr = w.dtype.element_ty
    w = w.to(tl.pointer_type(tl.int16 if kind.primitive_bitwidth == 16 else tl.int32))
    w_r = tl.load(w, mask=mask, other=0).to(kind, bitcast=True)
    w_z = tl.load(w + size, mask=mask, other=0).to(kind, bitcast=True)
    w_n = tl.load(w + 2 * size, mask=mask, other=0).to(kind, bitcast=True)
    return w_r, w_z, w_n


@triton.jit
def _gates(h, x_r, x_z, weights, biases, RESET_AFTER: tl.constexpr, PRECISION: tl.constexpr):
    """Return r, z, q and what is added to gx_n under the tanh: the part of a step that needs products."""
    w_r, w_z, w_n = weights
    b_r, b_z, b_n = biases
    operand = h.to(w_r.dtype)
    r = sigmoid(tl.dot(operand, w_r, input_precision=PRECISION) + x_r.to(tl.float32) + b_r)
    z = sigmoid(tl.dot(operand, w_z, input_precision=PRECISION) + x_z.to(tl.float32) + b_z)
    if RESET_AFTER:
        q = tl.dot(operand, w_n, input_precision=PRECISION) + b_n
        inner = r * q
    else:
        q = r * h
        inner = tl.dot(q.to(w_n.dtype), w_n, input_precision=PRECISION) + b_n
    return r, z, q, inner


@triton.jit(do_not_specialize=COUNTS)
def _forward(
    gx, w_hh, b_hh, h0, lengths, starts, y, h_n, gates,
    T, B, H, gx_t, gx_b, y_t, y_b, gates_t, gates_b, has_b, has_h0, has_lengths, packed, save_gates,
    RESET_AFTER: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = y.dtype.element_ty
    where = rows(lengths, starts, T, B, has_lengths, packed, ROWS)
    row, length, _, direction = where
    steps = tl.max(length, 0)
    until = length * packed + T * (1 - packed)  # past a row's length padded frames are 0
    unit = tl.arange(0, BLOCK_H)
    real = unit < H
    tile = (row < B)[:, None] & real[None, :]
    # Transposed, [h, unit]: it multiplies rows of states from the right.
    w_hh += direction * 3 * H * H + unit[None, :] * H + unit[:, None]
    weights = _load_weights(w_hh, H * H, real[:, None] & real[None, :])
    b_hh += direction * 3 * H + unit
    biased = unit < H * has_b
    b_r = tl.load(b_hh, mask=biased, other=0).to(tl.float32)[None, :]
    b_z = tl.load(b_hh + H, mask=biased, other=0).to(tl.float32)[None, :]
    b_n = tl.load(b_hh + 2 * H, mask=biased, other=0).to(tl.float32)[None, :]
    biases = (b_r, b_z, b_n)
    state = (direction * B + row.to(tl.int64))[:, None] * H + unit[None, :]
    h = tl.load(h0 + state, mask=tile & (row < B * has_h0)[:, None], other=0).to(tl.float32)
    gx += direction * 3 * H + unit[None, :]
    y += direction * H + unit[None, :]
    gates += direction * 4 * H + unit[None, :]

    # The products of a step come at the end of the one before, so that W_hh has two uses and stays in registers; gx
    # is loaded one step before it is used.
    first = tile & within(0, length)
    at = place(0, where, (gx_t, gx_b))
    x_r = tl.load(gx + at, mask=first, other=0)
    x_z = tl.load(gx + at + H, mask=first, other=0)
    x_n = tl.load(gx + at + 2 * H, mask=first, other=0)
    r, z, q, inner = _gates(h, x_r, x_z, weights, biases, RESET_AFTER, PRECISION)
    coming = tile & within(1, length)
    at = place(1, where, (gx_t, gx_b))
    x_r = tl.load(gx + at, mask=coming, other=0)
    x_z = tl.load(gx + at + H, mask=coming, other=0)
    for step in range(steps):
        coming = tile & within(step + 1, length)
        at = place(step + 1, where, (gx_t, gx_b))
        next_n = tl.load(gx + at + 2 * H, mask=coming, other=0)
        coming = tile & within(step + 2, length)
        at = place(step + 2, where, (gx_t, gx_b))
        next_r = tl.load(gx + at, mask=coming, other=0)
        next_z = tl.load(gx + at + H, mask=coming, other=0)
        n = tanh(x_n.to(tl.float32) + inner)
        valid = tile & within(step, length)
        h = tl.where(valid, z * h + (1 - z) * n, h)
        shown = tile & within(step, until)
        at = place(step, where, (y_t, y_b))
        tl.store(y + at, tl.where(valid, h, 0).to(kind), mask=shown)
        kept = tile & within(step, until * save_gates)
        at = place(step, where, (gates_t, gates_b))
        tl.store(gates + at, tl.where(valid, r, 0).to(kind), mask=kept)
        tl.store(gates + at + H, tl.where(valid, z, 0).to(kind), mask=kept)
        tl.store(gates + at + 2 * H, tl.where(valid, n, 0).to(kind), mask=kept)
        tl.store(gates + at + 3 * H, tl.where(valid, q, 0).to(kind), mask=kept)
        r, z, q, inner = _gates(h, x_r, x_z, weights, biases, RESET_AFTER, PRECISION)
        x_r, x_z, x_n = next_r, next_z, next_n
    tl.store(h_n + state, h.to(kind), mask=tile)
    zero = tl.zeros([ROWS, BLOCK_H], kind)
    for step in range(steps, T * (1 - packed)):
        tl.store(y + place(step, where, (y_t, y_b)), zero, mask=tile)
        at = place(step, where, (gates_t, gates_b))
        for part in range(4):
            tl.store(gates + at + part * H, zero, mask=tile & within(step, until * save_gates))


@triton.jit
def _step_back(
    grad_h, valid, shown, step_saved, weights, grad_gx, grad_q, H, RESET_AFTER: tl.constexpr, PRECISION: tl.constexpr
):
    """Write the gradients of gx and q at a step and return that of the state before it."""
    g, before, r, z, n, q = step_saved
    w_r, w_z, w_n = weights
    kind: tl.constexpr = w_r.dtype
    r, z, n, q = r.to(tl.float32), z.to(tl.float32), n.to(tl.float32), q.to(tl.float32)
    before = before.to(tl.float32)
    grad = grad_h + g.to(tl.float32)
    pre_n = tl.where(valid, grad * (1 - z) * (1 - n * n), 0)
    pre_z = tl.where(valid, grad * (before - n) * z * (1 - z), 0).to(kind)
    tl.store(grad_gx + H, pre_z, mask=shown)
    tl.store(grad_gx + 2 * H, pre_n.to(kind), mask=shown)
    passed = grad * z
    if RESET_AFTER:
        pre_r = (pre_n * q * r * (1 - r)).to(kind)
        pre_n = (pre_n * r).to(kind)
        tl.store(grad_q, pre_n, mask=shown)
        passed = tl.dot(pre_n, w_n, passed, input_precision=PRECISION)
    else:
        through = tl.dot(pre_n.to(kind), w_n, input_precision=PRECISION)
        pre_r = (through * before * r * (1 - r)).to(kind)
        passed += through * r
    tl.store(grad_gx, pre_r, mask=shown)
    passed = tl.dot(pre_r, w_r, passed, input_precision=PRECISION)
    passed = tl.dot(pre_z, w_z, passed, input_precision=PRECISION)
    return tl.where(valid, passed, grad_h)


@triton.jit(do_not_specialize=COUNTS)
def _backward(
    grad_y, grad_h_n, y, gates, w_hh, h0, lengths, starts, grad_gx, grad_q, grad_h0,
    T, B, H, gy_t, gy_b, y_t, y_b, gates_t, gates_b, gx_t, gx_b, q_t, q_b, has_h0, has_lengths, packed,
    RESET_AFTER: tl.constexpr, BLOCK_H: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = y.dtype.element_ty
    where = rows(lengths, starts, T, B, has_lengths, packed, ROWS)
    row, length, _, direction = where
    steps = tl.max(length, 0)
    until = length * packed + T * (1 - packed)  # past a row's length padded frames are 0
    unit = tl.arange(0, BLOCK_H)
    real = unit < H
    tile = (row < B)[:, None] & real[None, :]
    w_hh += direction * 3 * H * H + unit[:, None] * H + unit[None, :]
    weights = _load_weights(w_hh, H * H, real[:, None] & real[None, :])
    state = (direction * B + row.to(tl.int64))[:, None] * H + unit[None, :]
    grad_h = tl.load(grad_h_n + state, mask=tile, other=0).to(tl.float32)
    h0 += state
    y += direction * H + unit[None, :]
    grad_y += direction * H + unit[None, :]
    gates += direction * 4 * H + unit[None, :]
    grad_gx += direction * 3 * H + unit[None, :]
    grad_q += direction * H + unit[None, :]
    tensors = (grad_y, y, gates, h0)
    strides = ((gy_t, gy_b), (y_t, y_b), (gates_t, gates_b))

    # The last step comes before the loop, so that W_hh has two uses and stays in registers; the operands of a step
    # are loaded while the one after it is computed.
    step = steps - 1
    valid = tile & within(step, length)
    now = saved(step, valid, where, tensors, strides, H, has_h0)
    shown = tile & within(step, until)
    at_gx = grad_gx + place(step, where, (gx_t, gx_b))
    at_q = grad_q + place(step, where, (q_t, q_b))
    grad_h = _step_back(grad_h, valid, shown, now, weights, at_gx, at_q, H, RESET_AFTER, PRECISION)
    step -= 1
    valid = tile & within(step, length)
    now = saved(step, valid, where, tensors, strides, H, has_h0)
    for late in range(1, steps):
        step = steps - 1 - late
        wanted = tile & within(step - 1, length)
        coming = saved(step - 1, wanted, where, tensors, strides, H, has_h0)
        valid = tile & within(step, length)
        shown = tile & within(step, until)
        at_gx = grad_gx + place(step, where, (gx_t, gx_b))
        at_q = grad_q + place(step, where, (q_t, q_b))
        grad_h = _step_back(grad_h, valid, shown, now, weights, at_gx, at_q, H, RESET_AFTER, PRECISION)
        now = coming
    tl.store(grad_h0 + state, grad_h.to(kind), mask=tile)
    zero = tl.zeros([ROWS, BLOCK_H], kind)
    for step in range(steps, T * (1 - packed)):
        at = place(step, where, (gx_t, gx_b))
        for part in range(3):
            tl.store(grad_gx + at + part * H, zero, mask=tile)
        if RESET_AFTER:
            tl.store(grad_q + place(step, where, (q_t, q_b)), zero, mask=tile)


@dataclass(frozen=True)
class Plan:
    """Execution plan of a hidden size: ``resident`` keeps W_hh, padded to ``block``, in registers, or streams it."""

    resident: bool
    block: int
    warps: int
    precision: str

    @property
    def options(self) -> dict:
        # Without this bound the compiler spills to fit a second program on the multiprocessor.
        return {"num_warps": self.warps, "num_stages": 3, "maxnreg": 255}

    @property
    def constants(self) -> dict:
        sizes = {"BLOCK_H": self.block} if self.resident else {"BLOCK_N": self.block, "BLOCK_K": 32}
        return sizes | {"ROWS": ROWS, "PRECISION": self.precision}


def plan(hidden: int, dtype: torch.dtype, tf32: bool) -> Plan:
    """Return the kernels for a hidden size; tests read registers and shared memory of each from its cubin."""
    half = dtype in HALF
    precision = "tf32" if half or tf32 else "tf32x3"
    for block in (32, 64, 128) if half else (32, 64):
        if hidden <= block:
            return Plan(True, block, block // 16 if half else block // 8, precision)
    return Plan(False, 128 if half else 64, 8, precision)


def _widen(tensor: Tensor | None, parts: int, extra: int) -> Tensor | None:
    """Pad each of the parts along the last axis with zeros, for hidden sizes that cannot be read in vectors."""
    if tensor is None or not tensor.numel():
        return tensor
    return F.pad(tensor.unflatten(-1, (parts, -1)), (0, extra)).flatten(-2)


def _widen_weight(w_hh: Tensor, extra: int) -> Tensor:
    return F.pad(w_hh.unflatten(1, (3, -1)), (0, extra, 0, extra)).flatten(1, 2)


def _wide_like(out: Tensor, parts: int, extra: int) -> Tensor:
    """Return a new tensor like ``out``, widened as by :func:`_widen`."""
    return out.new_empty(*out.shape[:-1], out.shape[-1] + parts * extra) if out.numel() else out


def _narrow(out: Tensor, wide: Tensor, parts: int) -> None:
    """Undo :func:`_widen`, into ``out``."""
    if out.numel():
        out.copy_(wide.unflatten(-1, (parts, -1))[..., : out.shape[-1] // parts].flatten(-2))


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor with [D, W] of every frame contiguous and aligned; the order of frames is free."""
    dense = tensor.stride(-1) == 1 and (tensor.shape[-2] == 1 or tensor.stride(-2) == tensor.shape[-1])
    aligned = tensor.data_ptr() % 16 == 0 and not any(step % 16 for step in tensor.stride()[:-2])
    return tensor if dense and aligned else tensor.clone(memory_format=torch.contiguous_format)


def _strides(tensor: Tensor) -> tuple[int, int]:
    """Return the strides from a frame and a row to the next; rows of packed frames have starts instead."""
    return (tensor.stride(0), tensor.stride(1) if tensor.dim() == 4 else 0) if tensor.dim() > 1 else (0, 0)


def _lengths(lengths: Tensor | None, packed: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths and the packed rows' first frames; an empty tensor stands for what is not read."""
    if lengths is None:
        lengths = like.new_empty(0, dtype=torch.int64)
        return lengths, lengths
    lengths = lengths.to(torch.int64).contiguous()
    if not packed:
        return lengths, lengths
    valid = lengths.clamp(min=0)
    return lengths, valid.cumsum(0) - valid


def gru(
    gx: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset_after: bool,
    save_gates: bool,
    tf32: bool,
    y: Tensor,
    h_n: Tensor,
    gates: Tensor,
) -> None:
    """Launch ``ser_fast::gru`` for float32, float16 and bfloat16.

    Args:
        tf32: multiply float32 as one tf32 product instead of three.
        y, h_n, gates: outputs ``[T, B, D, H]`` (packed ``[N, D, H]``), ``[D, B, H]`` and ``[T, B, D, 4H]``; gates are
            empty without ``save_gates``.
    """
    directions, batch, hidden = h_n.shape
    if extra := -hidden % 16:
        operands = (_widen(gx, 3, extra), _widen_weight(w_hh, extra), _widen(b_hh, 3, extra), _widen(h0, 1, extra))
        outputs = ((y, 1), (h_n, 1), (gates, 4))
        wide = [_wide_like(out, parts, extra) for out, parts in outputs]
        gru(*operands, lengths, reset_after, save_gates, tf32, *wide)
        for (out, parts), result in zip(outputs, wide):
            _narrow(out, result, parts)
        return
    gx, w_hh = _dense(gx), w_hh.contiguous()
    packed, chosen = gx.dim() == 3, plan(hidden, gx.dtype, tf32)
    if packed:
        # No program writes frames that belong to no row, which exist if lengths add up to less than N.
        for tensor in (y, gates):
            tensor.zero_()
    bias, first = (w_hh if tensor is None else tensor.contiguous() for tensor in (b_hh, h0))
    tensors = (gx, w_hh, bias, first, *_lengths(lengths, packed, h_n), y, h_n, gates)
    sizes = (gx.shape[0], batch, hidden, *_strides(gx), *_strides(y), *_strides(gates))
    flags = (b_hh is not None, h0 is not None, lengths is not None, packed, save_gates)
    options = {"RESET_AFTER": reset_after} | chosen.constants | chosen.options
    grid = (triton.cdiv(batch, ROWS), directions)
    with torch.cuda.device_of(gx):
        if chosen.resident:
            _forward[grid](*tensors, *sizes, *map(int, flags), **options)
        else:
            scratch = gx.new_empty(3, directions, batch, hidden, dtype=torch.float32)
            gru_streamed.forward[grid](*tensors, scratch, *sizes, *map(int, flags), **options)


def gru_backward(
    grad_y: Tensor,
    grad_h_n: Tensor,
    y: Tensor,
    gates: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset_after: bool,
    tf32: bool,
    grad_gx: Tensor,
    grad_q: Tensor,
    grad_h0: Tensor,
) -> None:
    """Launch ``ser_fast::gru_backward`` for float32, float16 and bfloat16.

    Args:
        tf32: multiply float32 as one tf32 product instead of three.
        grad_gx, grad_q, grad_h0: outputs ``[T, B, D, 3H]`` (packed ``[N, D, 3H]``), ``[T, B, D, H]`` (empty without
            ``reset_after``) and ``[D, B, H]``.
    """
    directions, batch, hidden = grad_h0.shape
    if extra := -hidden % 16:
        operands = (
            _widen(tensor, parts, extra) for tensor, parts in ((grad_y, 1), (grad_h_n, 1), (y, 1), (gates, 4))
        )
        outputs = ((grad_gx, 3), (grad_q, 1), (grad_h0, 1))
        wide = [_wide_like(out, parts, extra) for out, parts in outputs]
        gru_backward(*operands, _widen_weight(w_hh, extra), _widen(h0, 1, extra), lengths, reset_after, tf32, *wide)
        for (out, parts), result in zip(outputs, wide):
            _narrow(out, result, parts)
        return
    grad_y, y, gates, w_hh = _dense(grad_y), _dense(y), _dense(gates), w_hh.contiguous()
    packed, chosen = y.dim() == 3, plan(hidden, y.dtype, tf32)
    if packed:
        for tensor in (grad_gx, grad_q):
            tensor.zero_()
    first = w_hh if h0 is None else h0.contiguous()
    ragged = _lengths(lengths, packed, grad_h0)
    tensors = (grad_y, grad_h_n.contiguous(), y, gates, w_hh, first, *ragged, grad_gx, grad_q, grad_h0)
    strides = (place for tensor in (grad_y, y, gates, grad_gx, grad_q) for place in _strides(tensor))
    sizes = (y.shape[0], batch, hidden, *strides, *map(int, (h0 is not None, lengths is not None, packed)))
    options = {"RESET_AFTER": reset_after} | chosen.constants | chosen.options
    grid = (triton.cdiv(batch, ROWS), directions)
    with torch.cuda.device_of(y):
        if chosen.resident:
            _backward[grid](*tensors, *sizes, **options)
        else:
            scratch = y.new_empty(directions, batch, hidden, dtype=torch.float32)
            gru_streamed.backward[grid](*tensors, scratch, *sizes, **options)


def configurations() -> Iterator[dict]:
    """Yield every kernel that :func:`plan` can choose, in the form that ahead-of-time compilation takes."""
    fixed = {"lengths": "*i64", "starts": "*i64", "scratch": "*fp32"}
    dtypes = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    for dtype, tf32 in [
        (torch.float16, False),
        (torch.bfloat16, False),
        (torch.float32, True),
        (torch.float32, False),
    ]:
        for chosen in dict.fromkeys(plan(hidden, dtype, tf32) for hidden in (32, 64, 128, 256)):
            for kernel in (_forward, _backward) if chosen.resident else (gru_streamed.forward, gru_streamed.backward):
                names, first_number = kernel.arg_names, kernel.arg_names.index("T")
                signature = {name: fixed.get(name, dtypes[dtype]) for name in names[:first_number]}
                signature |= dict.fromkeys(names[first_number:], "i32")
                for reset_after in (True, False):
                    constants = {"RESET_AFTER": reset_after} | chosen.constants
                    sizes = [name for name in names[first_number:] if name not in (*COUNTS, *constants)]
                    yield {
                        "kernel": kernel,
                        "signature": signature | dict.fromkeys(constants, "constexpr"),
                        "constexprs": constants,
                        "options": chosen.options,
                        "aligned": sizes,
                    }

"""GRU: the recurrence over a whole batch as a torch op."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.backends import dispatch, registry
from ser_fast.ops import checks
from ser_fast.ops.checks import HALF
from ser_fast.ops.lengths import padded, places


def reference(
    gx: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    reset_after: bool = True,
    save_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation of ``ser_fast::gru`` in plain PyTorch, differentiable.

    Args:
        save_gates: also return what the backward reads; the others are those of :func:`gru`.

    Returns:
        ``y``, ``h_n`` and the gates ``[T, B, D, 4H]``, empty without ``save_gates``: r, z, n and q, where q is
        W_hn h + b_hn with ``reset_after`` and r h without.
    """
    _check("gru", gx, w_hh, b_hh, h0, lengths)
    if gx.dim() == 3:
        place = places(lengths)
        y, h_n, gates = reference(_padded(gx, lengths), w_hh, b_hh, h0, lengths, reset_after, save_gates)
        return y[place], h_n, gates[place] if save_gates else gates
    frames, batch, directions, width = gx.shape
    hidden = width // 3
    dtype = gx.dtype
    state_dtype = torch.float32 if dtype in HALF else dtype
    ys, states, gates = [], [], []
    for d in range(directions):
        w, b = w_hh[d].to(state_dtype), None if b_hh is None else b_hh[d].to(state_dtype)
        h = gx.new_zeros(batch, hidden, dtype=state_dtype) if h0 is None else h0[d].to(state_dtype)
        y, saved = [None] * frames, [None] * frames
        for t in range(frames) if d == 0 else reversed(range(frames)):
            new, *parts = cell(gx[t, :, d].to(state_dtype), h, w, b, reset_after)
            if lengths is None:
                h = y[t] = new
            else:
                valid = (t < lengths)[:, None]
                h = torch.where(valid, new, h)
                y[t] = torch.where(valid, new, 0)
                parts = [torch.where(valid, part, 0) for part in parts]
            saved[t] = torch.cat(parts, dim=1) if save_gates else None
        ys.append(torch.stack(y))
        states.append(h)
        gates.append(torch.stack(saved) if save_gates else None)
    y, h_n = _laid_out_as(gx, torch.stack(ys, dim=2).to(dtype)), torch.stack(states).to(dtype)
    return y, h_n, _laid_out_as(gx, torch.stack(gates, dim=2).to(dtype)) if save_gates else gx.new_empty(0)


def _padded(packed: Tensor, lengths: Tensor) -> Tensor:
    """Return packed frames [N, D, W] as [T, B, D, W], 0 past each length."""
    return padded(packed, lengths).transpose(0, 1)


def cell(gx: Tensor, h: Tensor, w: Tensor, b: Tensor | None, reset_after: bool) -> tuple[Tensor, ...]:
    """Compute one step: the new state and r, z, n, q. Shapes: gx [B, 3H], h [B, H], w [3H, H], b [3H]."""
    hidden = h.shape[1]
    gx_r, gx_z, gx_n = gx.chunk(3, dim=1)
    if reset_after:
        gh_r, gh_z, q = F.linear(h, w, b).chunk(3, dim=1)
        r, z = torch.sigmoid(gx_r + gh_r), torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + r * q)
    else:
        cut = 2 * hidden
        gh_r, gh_z = F.linear(h, w[:cut], None if b is None else b[:cut]).chunk(2, dim=1)
        r, z = torch.sigmoid(gx_r + gh_r), torch.sigmoid(gx_z + gh_z)
        q = r * h
        n = torch.tanh(gx_n + F.linear(q, w[cut:], None if b is None else b[cut:]))
    return z * h + (1 - z) * n, r, z, n, q


def reference_backward(
    grad_y: Tensor,
    grad_h_n: Tensor,
    y: Tensor,
    gates: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset_after: bool,
    grad_gates: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation of ``ser_fast::gru_backward`` in plain PyTorch, differentiable.

    Args:
        grad_gates: gradient of the gates, which only second derivatives have.

    Returns:
        Gradients of ``gx`` ``[T, B, D, 3H]``, of q = W_hn h + b_hn ``[T, B, D, H]`` (empty without ``reset_after``)
        and of ``h0`` ``[D, B, H]``.
    """
    _check_backward(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, grad_gates)
    grad_gates = torch.zeros_like(gates) if grad_gates is None else grad_gates
    if y.dim() == 3:
        place = places(lengths)
        grad_y, y, gates, grad_gates = (_padded(tensor, lengths) for tensor in (grad_y, y, gates, grad_gates))
        grads = reference_backward(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after, grad_gates)
        return grads[0][place], grads[1][place] if reset_after else grads[1], grads[2]
    frames, _, directions, hidden = y.shape
    before = _states_before(y, h0, lengths)
    grads_gx, grads_q, grads_h0 = [], [], []
    for d in range(directions):
        grad_h, w = grad_h_n[d], w_hh[d]
        grad_gx, grad_q = [None] * frames, [None] * frames
        for t in reversed(range(frames)) if d == 0 else range(frames):
            r, z, n, q = gates[t, :, d].chunk(4, dim=1)
            grad_r, grad_z, grad_n, grad_own_q = grad_gates[t, :, d].chunk(4, dim=1)
            valid = torch.ones_like(grad_h[:, :1], dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
            grad = grad_h + grad_y[t, :, d]
            pre_n = (grad * (1 - z) + grad_n) * (1 - n * n)
            pre_z = (grad * (before[t, :, d] - n) + grad_z) * z * (1 - z)
            if reset_after:
                pre_r = (pre_n * q + grad_r) * r * (1 - r)
                through = pre_n * r + grad_own_q
                previous = grad * z + torch.cat([pre_r, pre_z, through], dim=1) @ w
                grad_q[t] = torch.where(valid, through, 0)
            else:
                through = pre_n @ w[2 * hidden :] + grad_own_q
                pre_r = (through * before[t, :, d] + grad_r) * r * (1 - r)
                previous = grad * z + through * r + torch.cat([pre_r, pre_z], dim=1) @ w[: 2 * hidden]
            grad_gx[t] = torch.where(valid, torch.cat([pre_r, pre_z, pre_n], dim=1), 0)
            grad_h = torch.where(valid, previous, grad_h)
        grads_gx.append(torch.stack(grad_gx))
        grads_q.append(torch.stack(grad_q) if reset_after else None)
        grads_h0.append(grad_h)
    gx, h0 = _laid_out_as(y, torch.stack(grads_gx, dim=2)), torch.stack(grads_h0)
    return gx, _laid_out_as(y, torch.stack(grads_q, dim=2)) if reset_after else y.new_empty(0), h0


def _states_before(y: Tensor, h0: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the state before each step, shaped and laid out as y; undefined past a row's length."""
    if y.dim() == 3:
        # The extra frame at the end receives the writes of rows without frames, so no length is read on the host.
        total, sizes = len(y), lengths.clamp(min=0)
        ends = sizes.cumsum(0)
        before = y.new_zeros(total + 1, *y.shape[1:])
        before[1:total, 0] = y[:-1, 0]
        before[torch.where(sizes > 0, ends - sizes, total).clamp(max=total), 0] = 0 if h0 is None else h0[0]
        if y.shape[1] == 2:
            before[: total - 1, 1] = y[1:, 1]
            before[torch.where(sizes > 0, ends - 1, total).clamp(max=total), 1] = 0 if h0 is None else h0[1]
        return before[:total]
    _, batch, directions, _ = y.shape
    before = torch.zeros_like(y)
    before[1:, :, 0] = y[:-1, :, 0]
    if h0 is not None:
        before[0, :, 0] = h0[0]
    if directions == 2:
        before[:-1, :, 1] = y[1:, :, 1]
        if h0 is not None and lengths is None:
            before[-1, :, 1] = h0[1]
        elif h0 is not None:
            last = (lengths.long() - 1).clamp(0, y.shape[0] - 1)
            before[last, torch.arange(batch, device=y.device), 1] = h0[1]
    return before


def _check(op, gx, w_hh, b_hh, h0, lengths) -> None:
    batch, directions, hidden = _check_frames(op, "gx", gx, 3, lengths)
    checks.operand(op, "w_hh", w_hh, gx, (directions, 3 * hidden, hidden), "[D, 3H, H]")
    checks.optional(op, "b_hh", b_hh, gx, (directions, 3 * hidden), "[D, 3H]")
    checks.optional(op, "h0", h0, gx, (directions, batch, hidden), "[D, B, H]")


def _check_backward(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, grad_gates=None) -> None:
    op = "gru_backward" if grad_gates is None else "gru_backward_with_gates"
    batch, directions, hidden = _check_frames(op, "y", y, 1, lengths)
    states, wide = (directions, batch, hidden), (*y.shape[:-1], 4 * hidden)
    checks.operand(op, "grad_y", grad_y, y, tuple(y.shape), "y's shape")
    checks.operand(op, "grad_h_n", grad_h_n, y, states, "[D, B, H]")
    checks.operand(op, "gates", gates, y, wide, "y's shape with 4H")
    checks.operand(op, "w_hh", w_hh, y, (directions, 3 * hidden, hidden), "[D, 3H, H]")
    checks.optional(op, "h0", h0, y, states, "[D, B, H]")
    checks.optional(op, "grad_gates", grad_gates, y, wide, "y's shape with 4H")


def _check_frames(op: str, name: str, tensor: Tensor, gates: int, lengths: Tensor | None) -> tuple[int, int, int]:
    """Check gx (3 gates) or y (1 gate) and the lengths; return B, D and H."""
    checks.first(op, name, tensor, *checks.FLOATING)
    sizes = tuple(tensor.shape)
    packed = len(sizes) == 3 and lengths is not None
    good = (packed or len(sizes) == 4) and sizes[-2] in (1, 2) and sizes[-1] % gates == 0 and 0 not in sizes
    width = "3H" if gates == 3 else "H"
    allowed = f"[T, B, D, {width}] with D 1 or 2 and no size 0, or packed with lengths"
    checks.require(good, op, f"{name} has shape {list(sizes)}", allowed)
    if packed:
        checks.require(lengths.dim() == 1, op, f"lengths has shape {list(lengths.shape)}", "[B]")
    batch = lengths.shape[0] if packed else sizes[1]
    checks.lengths(op, lengths, tensor, batch, sizes[0])
    if packed and checks.readable(lengths):
        total = int(lengths.sum())
        checks.require(total == sizes[0], op, f"lengths add up to {total}", f"the packed frames, {sizes[0]}")
    return batch, sizes[-2], sizes[-1] // gates


def _batch_first(like: Tensor) -> bool:
    return like.dim() == 4 and like.stride(0) < like.stride(1)


def _empty_frames(like: Tensor, width: int) -> Tensor:
    """Return a new [T, B, D, width] or [N, D, width] tensor, batch-first in memory if ``like`` is."""
    if _batch_first(like):
        frames, batch, directions, _ = like.shape
        return like.new_empty(batch, frames, directions, width).transpose(0, 1)
    return like.new_empty(*like.shape[:-1], width)


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if _batch_first(like) else tensor.contiguous()


def new_outputs(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and return uninitialised outputs."""
    _check("gru", gx, w_hh, b_hh, h0, lengths)
    directions, width = gx.shape[-2:]
    batch, hidden = gx.shape[1] if gx.dim() == 4 else lengths.shape[0], width // 3
    gates = _empty_frames(gx, 4 * hidden) if save_gates else gx.new_empty(0)
    return _empty_frames(gx, hidden), gx.new_empty(directions, batch, hidden), gates


def new_gradients(
    grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after, grad_gates=None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and return uninitialised gradients."""
    _check_backward(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, grad_gates)
    hidden = y.shape[-1]
    grad_q = _empty_frames(y, hidden) if reset_after else y.new_empty(0)
    return _empty_frames(y, 3 * hidden), grad_q, torch.empty_like(grad_h_n, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    _, w_hh, b_hh, h0, lengths, ctx.reset_after, ctx.save_gates = inputs
    y, h_n, gates = output
    ctx.states = h_n.shape
    ctx.has_bias = b_hh is not None
    ctx.save_for_backward(y, gates, w_hh, h0, lengths)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_h_n, grad_gates):
    if not ctx.save_gates:
        raise RuntimeError(
            "gru: save_gates is False; it must be True for a gradient: run or export the model with gradients enabled"
        )
    y, gates, w_hh, h0, lengths = ctx.saved_tensors
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    grad_h_n = y.new_zeros(ctx.states) if grad_h_n is None else grad_h_n
    arguments = grad_y, grad_h_n, y, gates, w_hh, h0, lengths, ctx.reset_after
    if grad_gates is None:
        grad_gx, grad_q, grad_h0 = torch.ops.ser_fast.gru_backward(*arguments)
    else:  # only in second derivatives
        grad_gx, grad_q, grad_h0 = torch.ops.ser_fast.gru_backward_with_gates(*arguments, grad_gates)
    grad_w = grad_b = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_w, grad_b = weight_gradients(grad_gx, grad_q, y, gates, h0, lengths, ctx.reset_after)
    return grad_gx, grad_w, grad_b if ctx.has_bias else None, grad_h0 if h0 is not None else None, None, None, None


def weight_gradients(grad_gx, grad_q, y, gates, h0, lengths, reset_after) -> tuple[Tensor, Tensor]:
    """Return dW_hh [D, 3H, H] and db_hh [D, 3H]: products over all frames at once, so no atomics and a fixed order.

    The candidate's rows have a product of their own: with ``reset_after`` their gradient differs from that of gx by a
    factor r; without it they multiply q = r h instead of h.
    """
    hidden = y.shape[-1]
    grad, before = _flat(grad_gx), _flat(_states_before(y, h0, lengths))
    grad_n, state = (
        (_flat(grad_q), before) if reset_after else (grad[..., 2 * hidden :], _flat(gates)[..., 3 * hidden :])
    )
    weights, biases = [], []
    for d in range(grad.shape[1]):
        parts = ((grad[:, d, : 2 * hidden], before[:, d]), (grad_n[:, d], state[:, d]))
        weights.append(torch.cat([part.t() @ h for part, h in parts]))
        biases.append(torch.cat([part.sum(0) for part, _ in parts]))
    return torch.stack(weights), torch.stack(biases)


def _flat(tensor: Tensor) -> Tensor:
    """Return all frames in memory order, without a copy: [N, D, W]."""
    if tensor.dim() == 3:
        return tensor
    tensor = tensor.transpose(0, 1) if _batch_first(tensor) else tensor
    return tensor.reshape(-1, *tensor.shape[2:])  # vmap does not support flatten


_ARGUMENTS = "Tensor gx, Tensor w_hh, Tensor? b_hh, Tensor? h0, Tensor? lengths, bool reset_after, bool save_gates"
_OUTPUTS = "(Tensor y, Tensor h_n, Tensor gates)"
_BACKWARD_ARGUMENTS = (
    "Tensor grad_y, Tensor grad_h_n, Tensor y, Tensor gates, Tensor w_hh, Tensor? h0, Tensor? lengths,"
    " bool reset_after"
)
_GRADIENTS = "(Tensor grad_gx, Tensor grad_q, Tensor grad_h0)"


def on_cuda(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA kernel of ``gru``; falls back to the reference if W_hh does not fit on the chip."""
    args = (gx, w_hh, b_hh, h0, lengths, reset_after, save_gates)
    if not dispatch.fits_on_chip(w_hh.shape[-1], gx.dtype, gx.device.index):
        return reference(*args)
    return torch.ops.ser_fast_cuda.gru(*args, dispatch.tf32_allowed())


def backward_on_cuda(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after) -> tuple[Tensor, Tensor, Tensor]:
    """CUDA backward of ``gru``; falls back to the reference like the forward."""
    args = (grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after)
    if not dispatch.fits_on_chip(w_hh.shape[-1], y.dtype, y.device.index):
        return reference_backward(*args)
    return torch.ops.ser_fast_cuda.gru_backward(*args, dispatch.tf32_allowed())


def on_triton(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates) -> tuple[Tensor, Tensor, Tensor]:
    """Triton kernel of ``gru``; it streams W_hh if that does not fit on the chip."""
    from ser_fast.kernels import gru as kernels

    outputs = new_outputs(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates)
    kernels.gru(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates, dispatch.tf32_allowed(), *outputs)
    return outputs


def backward_on_triton(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backward of ``gru``."""
    from ser_fast.kernels import gru as kernels

    args = (grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after)
    gradients = new_gradients(*args)
    kernels.gru_backward(*args, dispatch.tf32_allowed(), *gradients)
    return gradients


registry.cuda_library.define(f"gru({_ARGUMENTS}, bool tf32) -> {_OUTPUTS}")
registry.cuda_library.define(f"gru_backward({_BACKWARD_ARGUMENTS}, bool tf32) -> {_GRADIENTS}")
registry.cuda_library.define("gru_limits(Tensor like) -> Tensor")
registry.cuda_library.define("gru_restrict(Tensor like, Tensor most) -> Tensor")
registry.library.define(
    "gru_plan(Tensor limits, int batch, int directions, int hidden, bool reset_after, int product, bool backward)"
    " -> Tensor"
)
registry.register(
    "gru",
    f"gru({_ARGUMENTS}) -> {_OUTPUTS}",
    reference=reference,
    fake=new_outputs,
    triton=on_triton,
    cuda=on_cuda,
    hidden_size=lambda gx, *_: gx.shape[-1] // 3 if gx.dim() else None,
    backward=_backward,
    setup_context=_setup_context,
    half_on=("cpu", "cuda"),
)
registry.register(
    "gru",
    f"gru_backward({_BACKWARD_ARGUMENTS}) -> {_GRADIENTS}",
    reference=reference_backward,
    fake=new_gradients,
    triton=backward_on_triton,
    cuda=backward_on_cuda,
    hidden_size=lambda grad_y, *_: grad_y.shape[-1] if grad_y.dim() else None,
    half_on=("cpu", "cuda"),
)
registry.register(
    "gru",
    f"gru_backward_with_gates({_BACKWARD_ARGUMENTS}, Tensor grad_gates) -> {_GRADIENTS}",
    reference=reference_backward,
    fake=new_gradients,
    half_on=("cpu", "cuda"),
)


def gru(
    gx: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the GRU recurrence over a padded or packed batch, all directions in one call.

    r = σ(gx_r + W_hr h + b_hr), z = σ(gx_z + W_hz h + b_hz), h' = z h + (1 − z) n, where

    - ``reset_after=True`` (torch, cuDNN): n = tanh(gx_n + r (W_hn h + b_hn));
    - ``reset_after=False`` (Cho et al. 2014, arXiv:1406.1078): n = tanh(gx_n + W_hn (r h) + b_hn).

    float16 and bfloat16 are computed in float32, including the state between the steps; on a CPU with AVX512-BF16 the
    recurrent product takes the state rounded to bfloat16. Under CPU autocast to bfloat16 the results are bfloat16,
    under CPU autocast to float16 they are float32.

    Args:
        gx: projected input with its bias, gates in the order r, z, n. A batch-first tensor transposed to
            ``[T, B, D, 3H]`` is used without a copy. With lengths also packed: the frames of all rows one after the
            other without padding.
        w_hh: recurrent weights.
        b_hh: recurrent biases; none if None.
        h0: states before the first step; zeros if None.
        lengths: frames of each row, int64 or int32, on gx's device; all frames if None. Direction 1 starts at each
            row's own last frame; past a row's length y is 0 and the state stays.
        reset_after: form of the candidate n, see above.

    Shape:
        gx ``[T, B, D, 3H]`` or packed ``[N, D, 3H]`` with D = 1 or 2 directions, w_hh ``[D, 3H, H]``, b_hh ``[D,
        3H]``, h0 ``[D, B, H]``, lengths ``[B]``; y ``[T, B, D, H]`` or packed ``[N, D, H]``, h_n ``[D, B, H]``.

    Returns:
        ``(y, h_n)``: all states and the last ones. Differentiable in gx, w_hh, b_hh and h0.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value. Lengths are not read on CUDA.

    Example:
        >>> import torch
        >>> gx, w_hh = torch.randn(7, 2, 1, 3 * 16), torch.randn(1, 3 * 16, 16) / 4
        >>> y, h_n = gru(gx, w_hh, lengths=torch.tensor([7, 3]))
        >>> y.shape, h_n.shape
        (torch.Size([7, 2, 1, 16]), torch.Size([1, 2, 16]))
        >>> bool((y[2, 1] == h_n[:, 1]).all()), bool((y[3:, 1] == 0).all())
        (True, True)
    """
    checks.given("gru", gx=gx, w_hh=w_hh)
    checks.tensors("gru", gx=gx, w_hh=w_hh, b_hh=b_hh, h0=h0, lengths=lengths)
    if checks.transforming():
        return reference(gx, w_hh, b_hh, h0, lengths, reset_after)[:2]
    dtype = gx.dtype
    widened = dtype == torch.float16 and gx.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if widened:
        _check("gru", gx, w_hh, b_hh, h0, lengths)
        gx, w_hh, b_hh, h0 = (None if tensor is None else tensor.float() for tensor in (gx, w_hh, b_hh, h0))
    # torch.jit checks a trace with gradients disabled; the traced graph must not depend on that.
    wants_grad = torch.jit.is_tracing() or (
        torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in (gx, w_hh, b_hh, h0))
    )
    y, h_n, _ = torch.ops.ser_fast.gru(gx, w_hh, b_hh, h0, lengths, reset_after, wants_grad)
    return (y.to(dtype), h_n.to(dtype)) if widened else (y, h_n)

"""GRU: the recurrence as a torch op, and ``GRU`` and ``GRUCell`` in the place of torch's."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ser_fast import backends, checks
from ser_fast.checks import HALF


def reference(
    gx: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    reset_after: bool = True,
    save_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``ser_fast::gru`` in plain torch, differentiable: the truth that every kernel is held to.

    Arguments as :func:`gru`; returns ``y``, ``h_n`` and, with ``save_gates``, the gates ``[T, B, D, 4H]`` that
    the backward wants: r, z, n and q, which is W_hn h + b_hn with ``reset_after`` and r h without.
    """
    _check("gru", gx, w_hh, b_hh, h0, lengths)
    if gx.dim() == 3:
        place = _places(lengths)
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
            new, *cell = _cell(gx[t, :, d].to(state_dtype), h, w, b, reset_after)
            if lengths is None:
                h = y[t] = new
            else:
                valid = (t < lengths)[:, None]
                h = torch.where(valid, new, h)
                y[t] = torch.where(valid, new, 0)
                cell = [torch.where(valid, part, 0) for part in cell]
            saved[t] = torch.cat(cell, dim=1) if save_gates else None
        ys.append(torch.stack(y))
        states.append(h)
        gates.append(torch.stack(saved) if save_gates else None)
    y, h_n = _laid_out_as(gx, torch.stack(ys, dim=2).to(dtype)), torch.stack(states).to(dtype)
    return y, h_n, _laid_out_as(gx, torch.stack(gates, dim=2).to(dtype)) if save_gates else gx.new_empty(0)


def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The frame and the row of each packed frame, [N] each."""
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(rows), device=lengths.device) - starts[rows], rows


def _padded(packed: Tensor, lengths: Tensor) -> Tensor:
    """[N, D, W] as [T, B, D, W], 0 past each length."""
    return packed.new_zeros(int(lengths.max()), len(lengths), *packed.shape[1:]).index_put(_places(lengths), packed)


def _cell(gx: Tensor, h: Tensor, w: Tensor, b: Tensor | None, reset_after: bool) -> tuple[Tensor, ...]:
    """One step: the new state and r, z, n, q. Shapes: gx [B, 3H], h [B, H], w [3H, H], b [3H]."""
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The op ``ser_fast::gru_backward`` in plain torch.

    Returns the gradients of ``gx`` ``[T, B, D, 3H]``, of q = W_hn h + b_hn ``[T, B, D, H]`` (empty without
    ``reset_after``) and of ``h0`` ``[D, B, H]``.
    """
    if y.dim() == 3:
        place = _places(lengths)
        grad_y, y, gates = (_padded(tensor, lengths) for tensor in (grad_y, y, gates))
        grads = reference_backward(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after)
        return grads[0][place], grads[1][place] if reset_after else grads[1], grads[2]
    frames, _, directions, hidden = y.shape
    before = _states_before(y, h0, lengths)
    grad_gx = _empty_frames(y, 3 * hidden).zero_()
    grad_q = _empty_frames(y, hidden).zero_() if reset_after else y.new_empty(0)
    grad_h0 = []
    for d in range(directions):
        grad_h, w = grad_h_n[d], w_hh[d]
        for t in reversed(range(frames)) if d == 0 else range(frames):
            r, z, n, q = gates[t, :, d].chunk(4, dim=1)
            valid = torch.ones_like(grad_h[:, :1], dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
            grad = grad_h + grad_y[t, :, d]
            pre_n = grad * (1 - z) * (1 - n * n)
            pre_z = grad * (before[t, :, d] - n) * z * (1 - z)
            if reset_after:
                pre_r = pre_n * q * r * (1 - r)
                recurrent = torch.cat([pre_r, pre_z, pre_n * r], dim=1)
                previous = grad * z + recurrent @ w
                grad_q[t, :, d] = torch.where(valid, pre_n * r, 0)
            else:
                through = pre_n @ w[2 * hidden :]
                pre_r = through * before[t, :, d] * r * (1 - r)
                previous = grad * z + through * r + torch.cat([pre_r, pre_z], dim=1) @ w[: 2 * hidden]
            grad_gx[t, :, d] = torch.where(valid, torch.cat([pre_r, pre_z, pre_n], dim=1), 0)
            grad_h = torch.where(valid, previous, grad_h)
        grad_h0.append(grad_h)
    return grad_gx, grad_q, torch.stack(grad_h0)


def _states_before(y: Tensor, h0: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The state that each step started from, shaped and laid out as y; anything past a row's length."""
    if y.dim() == 3:
        # One frame more takes what rows without frames would write; nothing is read on the host.
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
    checks.dtype(op, "gx", gx, *checks.FLOATING)
    sizes = tuple(gx.shape)
    packed = len(sizes) == 3 and lengths is not None
    good = (packed or len(sizes) == 4) and sizes[-2] in (1, 2) and sizes[-1] % 3 == 0 and 0 not in sizes
    allowed = "[T, B, D, 3H] with D 1 or 2 and no size 0, or packed with lengths"
    checks.require(good, op, f"gx has shape {list(sizes)}", allowed)
    if packed:
        checks.require(lengths.dim() == 1, op, f"lengths has shape {list(lengths.shape)}", "[B]")
    frames, batch, directions, width = (sizes[0], lengths.shape[0], *sizes[1:]) if packed else sizes
    checks.operand(op, "w_hh", w_hh, gx, (directions, width, width // 3), "[D, 3H, H]")
    checks.operand(op, "b_hh", b_hh, gx, (directions, width), "[D, 3H]")
    checks.operand(op, "h0", h0, gx, (directions, batch, width // 3), "[D, B, H]")
    checks.lengths(op, lengths, gx, batch, frames)
    if packed and checks.readable(lengths):
        total = int(lengths.sum())
        checks.require(total == frames, op, f"lengths add up to {total}", f"the packed frames, {frames}")


def _batch_first(like: Tensor) -> bool:
    return like.dim() == 4 and like.stride(0) < like.stride(1)


def _empty_frames(like: Tensor, width: int) -> Tensor:
    """A new [T, B, D, width] or [N, D, width] tensor, laid out batch-first in memory where ``like`` is."""
    if _batch_first(like):
        frames, batch, directions, _ = like.shape
        return like.new_empty(batch, frames, directions, width).transpose(0, 1)
    return like.new_empty(*like.shape[:-1], width)


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if _batch_first(like) else tensor.contiguous()


def new_outputs(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates):
    _check("gru", gx, w_hh, b_hh, h0, lengths)
    directions, width = gx.shape[-2:]
    batch, hidden = gx.shape[1] if gx.dim() == 4 else lengths.shape[0], width // 3
    gates = _empty_frames(gx, 4 * hidden) if save_gates else gx.new_empty(0)
    return _empty_frames(gx, hidden), gx.new_empty(directions, batch, hidden), gates


def new_gradients(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after):
    hidden = y.shape[-1]
    grad_q = _empty_frames(y, hidden) if reset_after else y.new_empty(0)
    return _empty_frames(y, 3 * hidden), grad_q, torch.empty_like(grad_h_n, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    _, w_hh, b_hh, h0, lengths, ctx.reset_after, ctx.save_gates = inputs
    y, h_n, gates = output
    ctx.states = h_n.shape
    ctx.has_bias = b_hh is not None
    ctx.save_for_backward(y, gates, w_hh, h0, lengths)
    ctx.mark_non_differentiable(gates)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_h_n, _):
    if not ctx.save_gates:
        raise RuntimeError("gru: save_gates is False; it must be True where a gradient is wanted")
    y, gates, w_hh, h0, lengths = ctx.saved_tensors
    grad_y = torch.zeros_like(y) if grad_y is None else grad_y
    grad_h_n = y.new_zeros(ctx.states) if grad_h_n is None else grad_h_n
    grad_gx, grad_q, grad_h0 = torch.ops.ser_fast.gru_backward(
        grad_y, grad_h_n, y, gates, w_hh, h0, lengths, ctx.reset_after
    )
    grad_w = grad_b = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_w, grad_b = _weight_gradients(grad_gx, grad_q, y, gates, h0, lengths, ctx.reset_after)
    return grad_gx, grad_w, grad_b if ctx.has_bias else None, grad_h0 if h0 is not None else None, None, None, None


def _weight_gradients(grad_gx, grad_q, y, gates, h0, lengths, reset_after) -> tuple[Tensor, Tensor]:
    """dW_hh [D, 3H, H] and db_hh [D, 3H]: products over all frames at once, so neither atomics nor an order to lose.

    The candidate's rows have a product of their own: with ``reset_after`` its gradient differs from the one of
    gx by a factor r, without it they multiply q = r h in the place of h.
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
    """All frames in the order in which they lie, without a copy: [N, D, W]."""
    if tensor.dim() == 3:
        return tensor
    return (tensor.transpose(0, 1) if _batch_first(tensor) else tensor).flatten(0, 1)


_ARGUMENTS = "Tensor gx, Tensor w_hh, Tensor? b_hh, Tensor? h0, Tensor? lengths, bool reset_after, bool save_gates"
_OUTPUTS = "(Tensor y, Tensor h_n, Tensor gates)"
_BACKWARD_ARGUMENTS = (
    "Tensor grad_y, Tensor grad_h_n, Tensor y, Tensor gates, Tensor w_hh, Tensor? h0, Tensor? lengths,"
    " bool reset_after"
)
_GRADIENTS = "(Tensor grad_gx, Tensor grad_q, Tensor grad_h0)"


def on_cuda(gx, w_hh, b_hh, h0, lengths, reset_after, save_gates) -> tuple[Tensor, Tensor, Tensor]:
    """The op by the CUDA C++ kernel, or by the reference where W_hh does not fit on the GPU's chip."""
    args = (gx, w_hh, b_hh, h0, lengths, reset_after, save_gates)
    if w_hh.shape[-1] > backends.widest[backends.gru_product(gx.dtype)]:
        return reference(*args)
    return torch.ops.ser_fast_cuda.gru(*args, backends.tf32_allowed())


def backward_on_cuda(grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after) -> tuple[Tensor, Tensor, Tensor]:
    """Likewise."""
    args = (grad_y, grad_h_n, y, gates, w_hh, h0, lengths, reset_after)
    if w_hh.shape[-1] > backends.widest[backends.gru_product(y.dtype)]:
        return reference_backward(*args)
    return torch.ops.ser_fast_cuda.gru_backward(*args, backends.tf32_allowed())


backends.cuda_library.define(f"gru({_ARGUMENTS}, bool tf32) -> {_OUTPUTS}")
backends.cuda_library.define(f"gru_backward({_BACKWARD_ARGUMENTS}, bool tf32) -> {_GRADIENTS}")
backends.cuda_library.define("gru_limits(Tensor like) -> Tensor")
backends.library.define(
    "gru_plan(Tensor limits, int batch, int directions, int hidden, bool reset_after, int product, bool backward)"
    " -> Tensor"
)
backends.register(
    f"gru({_ARGUMENTS}) -> {_OUTPUTS}",
    reference=reference,
    fake=new_outputs,
    cuda=on_cuda,
    backward=_backward,
    setup_context=_setup_context,
    half_on=("cpu", "cuda"),
)
backends.register(
    f"gru_backward({_BACKWARD_ARGUMENTS}) -> {_GRADIENTS}",
    reference=reference_backward,
    fake=new_gradients,
    cuda=backward_on_cuda,
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
    """The GRU recurrence over a padded or packed batch, all directions in one call.

    r = σ(gx_r + W_hr h + b_hr), z = σ(gx_z + W_hz h + b_hz), h' = z h + (1 − z) n, where

    - ``reset_after=True`` (torch, cuDNN): n = tanh(gx_n + r (W_hn h + b_hn));
    - ``reset_after=False`` (Cho et al. 2014, arXiv:1406.1078): n = tanh(gx_n + W_hn (r h) + b_hn).

    Args:
        gx: the input's projection with its bias ``[T, B, D, 3H]``, D directions, gates in the order r, z, n. A
            batch-first tensor transposed to this shape is taken as it lies. With ``lengths`` also ``[N, D, 3H]``, the
            frames of all rows one after the other without padding; y has this form then.
        w_hh, b_hh: recurrent weights ``[D, 3H, H]`` and biases ``[D, 3H]``.
        h0: the states before the first step ``[D, B, H]``; zeros if not given.
        lengths: frames of each row, int64 or int32 ``[B]``, on gx's device. Direction 1 starts at each row's own
            last frame; past a row's length y is 0 and the state stays.

    Returns:
        ``y`` ``[T, B, D, H]`` and the last states ``h_n`` ``[D, B, H]``. float16 and bfloat16 are computed in
        float32, the state between the steps too; on a CPU with AVX512-BF16 the recurrent product takes the state
        rounded to bfloat16. Under CPU autocast to bfloat16 the results are bfloat16, to float16 float32.

    Raises:
        RuntimeError: a shape, dtype, device or length that does not fit, by name. Lengths are not read on CUDA.
    """
    checks.tensors("gru", gx=gx, w_hh=w_hh, b_hh=b_hh, h0=h0, lengths=lengths)
    dtype = gx.dtype
    widened = dtype == torch.float16 and gx.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if widened:
        _check("gru", gx, w_hh, b_hh, h0, lengths)
        gx, w_hh, b_hh, h0 = (None if tensor is None else tensor.float() for tensor in (gx, w_hh, b_hh, h0))
    wants_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (gx, w_hh, b_hh, h0)
    )
    y, h_n, _ = torch.ops.ser_fast.gru(gx, w_hh, b_hh, h0, lengths, reset_after, wants_grad)
    return (y.to(dtype), h_n.to(dtype)) if widened else (y, h_n)


def _check_sizes(module: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{module}: {name} is {value!r}; it must be an int")
        if value < 1:
            raise ValueError(f"{module}: {name} is {value}; it must be at least 1")


def _check_operands(module: str, weight: Tensor, **operands: Tensor | None) -> None:
    """Dense tensors on the weights' device and, autocast aside, of their dtype."""
    checks.tensors(module, **operands)
    for name, value in operands.items():
        if value is None:
            continue
        checks.require(value.device == weight.device, module, f"{name} is on {value.device}", f"on {weight.device}")
        if not torch.is_autocast_enabled(weight.device.type):
            checks.dtype(module, name, value, weight.dtype)


def _init_uniform(module: nn.Module, hidden_size: int) -> None:
    bound = 1 / math.sqrt(hidden_size)
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound)


def _join(rows: Tensor, sizes: list[int]) -> Tensor:
    """The first frames of each row ``[B, T, W]``, one row after the other ``[N, W]``."""
    return torch.cat([row[:size] for row, size in zip(rows, sizes)])


def _part(packed: Tensor, sizes: list[int], frames: int, batch_first: bool) -> Tensor:
    """``[N, W]`` as rows ``[B, frames, W]`` with zeros behind them, in memory time first unless ``batch_first``."""
    batch, width = len(sizes), packed.shape[1]
    shape = (batch, frames, width) if batch_first else (frames, batch, width)
    padded = packed.new_zeros(shape)
    rows = padded if batch_first else padded.transpose(0, 1)
    for row, part in zip(rows, packed.split(sizes)):
        row[: len(part)] = part
    return rows


class _Join(torch.autograd.Function):
    """:func:`_join`, whose own derivative would fill a whole batch with zeros for every row."""

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int], batch_first: bool) -> Tensor:
        ctx.layout = sizes, rows.shape[1], batch_first
        return _join(rows, sizes)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _part(grad, *ctx.layout), None, None


class _Part(torch.autograd.Function):
    """:func:`_part`, likewise."""

    @staticmethod
    def forward(ctx, packed: Tensor, sizes: list[int], frames: int, batch_first: bool) -> Tensor:
        ctx.sizes = sizes
        return _part(packed, sizes, frames, batch_first)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _join(grad, ctx.sizes), None, None, None


class GRU(nn.Module):
    """``nn.GRU`` on the fused recurrence: its constructor, parameter names, state dict and results, and more.

    Equivalent to ``nn.GRU(...)`` with ``reset_after=True``; with ``reset_after=False`` it is the GRU of
    Cho et al. 2014 (arXiv:1406.1078), whose reset gate acts before the recurrent product.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as ``nn.GRU``.
        reset_after: which of the two forms; see :func:`gru`.
    """

    mode = "GRU"
    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        _check_sizes("GRU", input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"GRU: dropout is {dropout}; it must be a probability, in 0..1")
        if dropout > 0 and num_layers == 1:
            warnings.warn(f"GRU: dropout is {dropout}, but it acts between layers and num_layers is 1", stacklevel=2)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.reset_after = reset_after
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * directions
            for suffix in self._suffixes(layer):
                shapes = {"weight_ih": (3 * hidden_size, width), "weight_hh": (3 * hidden_size, hidden_size)}
                if bias:
                    shapes |= {"bias_ih": (3 * hidden_size,), "bias_hh": (3 * hidden_size,)}
                for name, shape in shapes.items():
                    weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_{suffix}", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _init_uniform(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Lay the weights out as one block, which cuDNN wants, as ``nn.GRU`` does; nothing to do off the GPU."""
        if next(self.parameters()).is_cuda:
            options = (self.bias, self.batch_first, self.dropout, self.bidirectional)
            twin = nn.GRU(self.input_size, self.hidden_size, self.num_layers, *options, device="meta")
            for name, weight in self.named_parameters():
                setattr(twin, name, weight)
            twin.flatten_parameters()

    def _apply(self, *args, **kwargs):
        module = super()._apply(*args, **kwargs)
        self.flatten_parameters()
        return module

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
        return [[getattr(self, f"{name}_{suffix}") for name in names] for suffix in suffixes]

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        for name, default in (defaults | {"reset_after": True}).items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, lengths: Tensor | None = None):
        """Run the layers.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, unbatched ``[T, I]``, or a ``PackedSequence``.
            hx: first states ``[layers * D, B, H]`` (``[layers * D, H]`` unbatched); zeros if not given.
            lengths: frames of each row ``[B]``, int64 or int32, on the input's device: packing without packing.

        Returns:
            ``output`` like the input with ``D * H`` features, 0 past each length, and ``h_n`` like ``hx``, each
            row's state at its own last frame.

        Raises:
            RuntimeError: an argument that does not fit, by name, before anything is computed.
        """
        if isinstance(input, PackedSequence):
            checks.require(lengths is None, "GRU", "lengths is given beside a PackedSequence", "left out")
            _check_operands("GRU", self.weight_ih_l0, input=input.data, hx=hx)
            return self._forward_packed(input, hx)
        _check_operands("GRU", self.weight_ih_l0, input=input, hx=hx)
        checks.tensors("GRU", lengths=lengths)
        checks.require(input.dim() in (2, 3), "GRU", f"input has shape {list(input.shape)}",
                       "[T, I], [T, B, I] or, with batch_first, [B, T, I]")  # fmt: skip
        if input.dim() == 2:
            checks.require(lengths is None, "GRU", "lengths is given beside an unbatched input", "left out")
            checks.require(hx is None or hx.dim() == 2, "GRU", f"hx has {hx is not None and hx.dim()} dimensions",
                           "[layers * D, H], since the input is unbatched")  # fmt: skip
            batch_axis = 0 if self.batch_first else 1
            output, h_n = self._forward(input.unsqueeze(batch_axis), None if hx is None else hx.unsqueeze(1), None)
            return output.squeeze(batch_axis), h_n.squeeze(1)
        return self._forward(input, hx, lengths)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def _forward_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        # Rows are kept in the packed order, longest first, so only the states need the two permutations.
        padded, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes), self.batch_first)
        if hx is not None:
            self._check_states(hx, padded.shape[0 if self.batch_first else 1])
        if hx is not None and packed.sorted_indices is not None:
            hx = hx.index_select(1, packed.sorted_indices)
        output, h_n = self._forward(padded, hx, lengths.to(padded.device))
        data = pack_padded_sequence(output, lengths, self.batch_first).data
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), h_n

    def _forward(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(x, hx, lengths)
        if self._takes_packed(x, lengths):
            total = int(lengths.sum())
            if 0 < total < x.shape[0] * x.shape[1]:
                return self._ragged(x, hx, lengths)
            lengths = lengths if total == 0 else None
        if lengths is not None and torch.is_grad_enabled():
            # The products that give the input weights' gradient run over the padding too, where 0 * NaN is NaN.
            frames = torch.arange(x.shape[1 if self.batch_first else 0], device=x.device)
            past = frames >= lengths[:, None] if self.batch_first else frames[:, None] >= lengths
            x = x.masked_fill(past[..., None], 0)
        # Packing cannot be traced, so a compiled graph with lengths keeps to the op.
        packs = lengths is not None and torch.compiler.is_compiling()
        if self.reset_after and not packs and self._backend(x) == "torch":
            return self._torch_forward(x, hx, lengths)
        return self._layers(x, hx, lengths)

    def _backend(self, x: Tensor) -> str:
        kind = x.device.type
        autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        # The number of steps may choose the path, but a traced graph and autocast keep to the op.
        steps = None if autocast or torch.compiler.is_compiling() else x.shape[1 if self.batch_first else 0]
        return backends.select("gru", x.device, steps, dtype=dtype, hidden_size=self.hidden_size)

    def _takes_packed(self, x: Tensor, lengths: Tensor | None) -> bool:
        """Where lengths can be read and a kernel takes packed rows, padding costs nothing."""
        return lengths is not None and checks.readable(lengths) and backends.select("gru", x.device) == "compiled"

    def _ragged(self, x: Tensor, hx: Tensor | None, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The layers on the valid frames alone, row after row."""
        rows, sizes = x if self.batch_first else x.transpose(0, 1), lengths.tolist()
        y, h_n = self._layers(_Join.apply(rows, sizes, self.batch_first), hx, lengths)
        y = _Part.apply(y, sizes, rows.shape[1], self.batch_first)
        return y if self.batch_first else y.transpose(0, 1), h_n

    def _layers(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers on ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or packed ``[N, I]``."""
        directions = 2 if self.bidirectional else 1
        turned = self.batch_first and x.dim() == 3
        states = []
        for layer in range(self.num_layers):
            weights = [[getattr(self, f"{name}_{suffix}") for suffix in self._suffixes(layer)]
                       for name in ("weight_ih", "weight_hh")]  # fmt: skip
            w_ih, w_hh = torch.cat(weights[0]), torch.stack(weights[1])
            b_ih = b_hh = None
            if self.bias:
                b_ih = torch.cat([getattr(self, f"bias_ih_{suffix}") for suffix in self._suffixes(layer)])
                b_hh = torch.stack([getattr(self, f"bias_hh_{suffix}") for suffix in self._suffixes(layer)])
            gx = F.linear(x, w_ih, b_ih).unflatten(-1, (directions, 3 * self.hidden_size))
            h0 = None if hx is None else hx[layer * directions : (layer + 1) * directions]
            y, h_n = gru(gx.transpose(0, 1) if turned else gx, w_hh, b_hh, h0, lengths, reset_after=self.reset_after)
            x = (y.transpose(0, 1) if turned else y).flatten(-2)
            states.append(h_n)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, torch.cat(states)

    def _check(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> None:
        sizes = tuple(x.shape)
        frames, batch = (sizes[1], sizes[0]) if self.batch_first else sizes[:2]
        checks.require(sizes[2] == self.input_size, "GRU", f"input has {sizes[2]} features", f"{self.input_size}")
        checks.require(frames > 0 and batch > 0, "GRU", f"input has shape {list(sizes)}", "without a size of 0")
        if hx is not None:
            self._check_states(hx, batch)
        checks.lengths("GRU", lengths, x, batch, frames)

    def _check_states(self, hx: Tensor, batch: int) -> None:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        checks.shape("GRU", "hx", hx, (layers, batch, self.hidden_size), "[layers * D, B, H]")

    def _torch_forward(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """torch's own GRU on these weights. With lengths it packs, which reads them on the host."""
        directions = 2 if self.bidirectional else 1
        batch = x.shape[0] if self.batch_first else x.shape[1]
        if hx is None:
            hx = x.new_zeros(self.num_layers * directions, batch, self.hidden_size)
        weights = [weight for group in self.all_weights for weight in group]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if lengths is None:
            return torch._VF.gru(x, hx, weights, *options, self.batch_first)
        host = lengths.cpu().clamp(0, x.shape[1 if self.batch_first else 0])
        # Packing refuses empty rows: they run one frame, whose output and state are put back afterwards.
        packed = pack_padded_sequence(x, host.clamp(min=1), self.batch_first, enforce_sorted=False)
        data, h_n = torch._VF.gru(
            packed.data, packed.batch_sizes, hx.index_select(1, packed.sorted_indices), weights, *options
        )
        output, _ = pad_packed_sequence(
            packed._replace(data=data), self.batch_first, total_length=x.shape[1 if self.batch_first else 0]
        )
        empty = lengths <= 0
        h_n = torch.where(empty[:, None], hx, h_n.index_select(1, packed.unsorted_indices))
        return output.masked_fill(empty[:, None, None] if self.batch_first else empty[:, None], 0), h_n


class GRUCell(nn.Module):
    """``nn.GRUCell`` with ``reset_after`` as in :class:`GRU`: one step, for streaming.

    It runs torch's own operators, since a kernel that lays W_hh out anew for a single step is slower: see
    ``ser-fast info``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        _check_sizes("GRUCell", input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.reset_after = reset_after
        options = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size, **options))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, **options))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size, **options)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _init_uniform(self, self.hidden_size)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}" + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state ``[B, H]`` from the input ``[B, I]`` and the state ``hx`` ``[B, H]``; unbatched likewise.

        Raises:
            RuntimeError: an argument that does not fit, by name, before anything is computed.
        """
        try:
            if self.reset_after and input.dim() == 2 and hx.dim() == 2 and input.shape[0]:
                return torch._VF.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        except (AttributeError, RuntimeError, TypeError):
            pass  # a small step takes no longer than checking it, so what does not fit is named only once it failed
        self._check(input, hx)
        shape = (*input.shape[:-1], self.hidden_size)
        x = input.reshape(-1, self.input_size)
        h = x.new_zeros(len(x), self.hidden_size) if hx is None else hx.reshape(-1, self.hidden_size)
        if self.reset_after:
            h = torch._VF.gru_cell(x, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        else:
            h, *_ = _cell(F.linear(x, self.weight_ih, self.bias_ih), h, self.weight_hh, self.bias_hh, False)
        return h.reshape(shape)

    def _check(self, x: Tensor, h: Tensor | None) -> None:
        _check_operands("GRUCell", self.weight_ih, input=x, hx=h)
        good = x.dim() in (1, 2) and 0 not in x.shape
        checks.require(good, "GRUCell", f"input has shape {list(x.shape)}", "[B, I] or [I] with no size 0")
        good = x.shape[-1] == self.input_size
        checks.require(good, "GRUCell", f"input has {x.shape[-1]} features", f"{self.input_size}")
        if h is not None:
            checks.shape("GRUCell", "hx", h, (*x.shape[:-1], self.hidden_size), "[B, H] or [H]")

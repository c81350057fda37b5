"""GRU layer: the input's projection and the recurrence as one torch op.

The ops have no derivatives of their own: that of ``gru_layer_forward`` is :class:`Layer`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast import _torch_compat
from ser_fast.backends import registry
from ser_fast.ops import checks, gru
from ser_fast.ops.lengths import frame_mask, places, unpadded

_INFERRED = (torch.float32, torch.float64, torch.bfloat16)


def reference(
    x: Tensor,
    weights: list[Tensor],
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    biased: bool = True,
    reset_after: bool = True,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reference implementation of ``ser_fast::gru_layer`` in plain PyTorch.

    Args:
        x: frames ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or with lengths packed ``[N, I]``. The other
            tensors have its dtype; bfloat16 is computed in float32.
        weights: w_ih ``[3H, I]``, w_hh ``[3H, H]`` and, if ``biased``, b_ih and b_hh ``[3H]`` of each direction.
        h0: states before the first step ``[D, B, H]``; zeros if None.
        lengths: frames of each row ``[B]``; all if None.
        reset_after: form of the candidate, see :func:`ser_fast.ops.gru.gru`.

    Returns:
        ``y``, shaped like x with ``D * H`` features, and ``h_n`` ``[D, B, H]``.
    """
    _check("gru_layer", x, weights, h0, lengths, biased, batch_first, dtypes=_INFERRED)
    if x.dtype == torch.bfloat16:
        x, h0 = x.float(), None if h0 is None else h0.float()
        wide = reference(x, [weight.float() for weight in weights], h0, lengths, biased, reset_after, batch_first)
        return wide[0].bfloat16(), wide[1].bfloat16()
    return _composed(gru.reference, x, weights, h0, lengths, biased, reset_after, batch_first)[:2]


def _composed(recurrence, x, weights, h0, lengths, biased, reset_after, batch_first, *save) -> tuple[Tensor, ...]:
    """Return the projection by torch and then the recurrence, ``gru.reference`` or an op with its arguments."""
    w_ih, w_hh, *biases = (torch.stack(weights[place :: 4 if biased else 2]) for place in range(4 if biased else 2))
    b_ih, b_hh = biases or (None, None)
    gx = F.linear(x, w_ih.flatten(0, 1), None if b_ih is None else b_ih.flatten()).unflatten(-1, w_hh.shape[:2])
    turned = batch_first and x.dim() == 3
    y, *rest = recurrence(gx.transpose(0, 1) if turned else gx, w_hh, b_hh, h0, lengths, reset_after, *save)
    return (y.transpose(0, 1) if turned else y).flatten(-2).contiguous(), *rest


def forward_reference(
    x: Tensor,
    weights: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    total: int,
    biased: bool,
    reset_after: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reference implementation of ``ser_fast::gru_layer_forward``, which also saves what the backward reads.

    Args:
        total: N, the number of valid frames; the others are those of :func:`reference`.

    Returns:
        ``y`` and ``h_n`` of :func:`reference`, the gates ``[N, D, 4H]`` of :func:`ser_fast.ops.gru.reference` and all
        states ``[N, D, H]``. The N frames are packed with lengths, else in the order of x.
    """
    _check("gru_layer_forward", x, weights, h0, lengths, biased, batch_first, total)
    y, h_n, gates = _composed(gru.reference, x, weights, h0, lengths, biased, reset_after, batch_first, True)
    if gates.dim() == 4 and batch_first:
        gates = gates.transpose(0, 1)
    states = y.unflatten(-1, (-1, weights[1].shape[1]))
    if gates.dim() == 4:
        gates, states = (_valid(tensor, lengths, batch_first) for tensor in (gates, states))
    return y, h_n, gates.contiguous(), states.clone(memory_format=torch.contiguous_format)


def _valid(frames: Tensor, lengths: Tensor | None, batch_first: bool) -> Tensor:
    if lengths is None:
        return frames.flatten(0, 1)
    return unpadded(frames if batch_first else frames.transpose(0, 1), lengths)


def reference_backward(
    grad_y: Tensor,
    grad_h_n: Tensor,
    x: Tensor,
    weights: list[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    gates: Tensor,
    states: Tensor,
    biased: bool,
    reset_after: bool,
    batch_first: bool,
    needs_x: bool,
    needs_weights: list[bool],
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Reference implementation of ``ser_fast::gru_layer_backward`` in plain PyTorch.

    Args:
        gates, states: saved by :func:`forward_reference`.
        needs_x, needs_weights: whether the gradients of x and of each weight are needed.

    Returns:
        Gradients of x, of each weight and of ``h0``; those that are not needed have shape ``[0]``.
    """
    _check_backward(grad_y, grad_h_n, x, weights, h0, lengths, gates, states, biased, batch_first, needs_weights)
    hidden = weights[1].shape[1]

    def laid_out(frames):  # [N, ...] as [T, B, ...], 0 past each length
        if lengths is None:
            frames = frames.unflatten(0, x.shape[:2])
            return frames.transpose(0, 1) if batch_first else frames
        steps = x.shape[batch_first] if x.dim() == 3 else int(lengths.max())
        return frames.new_zeros(steps, len(lengths), *frames.shape[1:]).index_put(places(lengths), frames)

    frames, grad_y = (tensor if tensor.dim() == 2 else _valid(tensor, lengths, batch_first) for tensor in (x, grad_y))
    grad_y, gates, states = map(laid_out, (grad_y.unflatten(-1, (-1, hidden)), gates, states))
    w_ih, w_hh = (torch.stack(weights[place :: 4 if biased else 2]) for place in range(2))
    grad_gx, grad_q, grad_h0 = gru.reference_backward(grad_y, grad_h_n, states, gates, w_hh, h0, lengths, reset_after)
    grad_w_hh, grad_b_hh = gru.weight_gradients(grad_gx, grad_q, states, gates, h0, lengths, reset_after)
    if lengths is None:
        grad_gx = _valid(grad_gx.transpose(0, 1) if batch_first else grad_gx, None, batch_first)
    else:
        grad_gx = grad_gx[places(lengths)]
    grads, wanted = [], iter(needs_weights)
    for d, grad in enumerate(grad_gx.unbind(1)):
        parts = (grad.t() @ frames, grad_w_hh[d], grad.sum(0), grad_b_hh[d])[: 4 if biased else 2]
        grads += [part.clone() if next(wanted) else x.new_empty(0) for part in parts]
    if not needs_x:
        return x.new_empty(0), grads, grad_h0
    grad_x = grad_gx.flatten(1) @ w_ih.flatten(0, 1)
    if x.dim() == 3 and lengths is None:
        grad_x = grad_x.view(x.shape)
    elif x.dim() == 3:
        rows = x.new_zeros(x.shape)
        (rows.transpose(0, 1) if batch_first else rows)[places(lengths)] = grad_x
        grad_x = rows
    return grad_x, grads, grad_h0


def _gradients(grad_y, grad_h_n, x, weights, h0, options) -> tuple[Tensor, ...]:
    """Return the gradients of x, h0 and the weights by ops that torch can differentiate again and batch."""
    lengths, biased, reset_after, batch_first = options
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: a tensor that is several arguments must get the gradient of each alone.
        inputs = [tensor.view_as(tensor) for tensor in (x, h0, *weights)]
        inputs = [tensor if tensor.requires_grad else tensor.requires_grad_() for tensor in inputs]
        frames = inputs[0]
        if lengths is not None and x.dim() == 3:  # padding may be NaN, and 0 * NaN is NaN
            valid = frame_mask(lengths, x.shape[1 if batch_first else 0])
            frames = frames.masked_fill(~(valid if batch_first else valid.T)[..., None], 0)
        y, h_n, *_ = _composed(_recurrence, frames, inputs[2:], inputs[1], lengths, biased, reset_after, batch_first)
        return torch.autograd.grad((y, h_n), inputs, (grad_y, grad_h_n), create_graph=again)


def cell_reference(
    x: Tensor, weights: list[Tensor], h: Tensor | None = None, biased: bool = True, reset_after: bool = True
) -> Tensor:
    """Reference implementation of ``ser_fast::gru_cell``: one step from h ``[B, H]`` on x ``[B, I]``."""
    _check_cell(x, weights, h, biased)
    return reference(x[None], weights, None if h is None else h[None], None, biased, reset_after)[1][0]


def _check_weights(op: str, x: Tensor, weights: list[Tensor], biased: bool, directions: int) -> int:
    """Check the weights of up to so many directions; return H."""
    each = 4 if biased else 2
    names = "w_ih, w_hh, b_ih and b_hh" if biased else "w_ih and w_hh"
    allowed = names if directions == 1 else f"{names} of 1 or 2 directions"
    checks.require(len(weights) in (each, directions * each), op, f"weights has {len(weights)} tensors", allowed)
    hidden, features = check_hidden(op, weights), x.shape[-1]
    wanted = ((3 * hidden, features), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
    for place, weight in enumerate(weights):
        letters = ("[3H, I]", "[3H, H]", "[3H]", "[3H]")[place % each]
        checks.operand(op, f"weights[{place}]", weight, x, wanted[place % each], letters)
    return hidden


def check_frames(op: str, x: Tensor, lengths: Tensor | None, batch_first: bool) -> None:
    """Check the shape of x."""
    packed = x.dim() == 2 and lengths is not None
    allowed = f"{'[B, T, I]' if batch_first else '[T, B, I]'} with no size 0, or packed with lengths"
    checks.require((packed or x.dim() == 3) and 0 not in x.shape, op, f"x has shape {list(x.shape)}", allowed)


def check_hidden(op: str, weights: list[Tensor]) -> int:
    """Check that the first w_hh is a matrix; return H."""
    good = weights[1].dim() == 2 and weights[1].shape[1] > 0
    checks.require(good, op, f"weights[1] has shape {list(weights[1].shape)}", "[3H, H] with no size 0")
    return weights[1].shape[1]


def check_rows(op, x, h0, lengths, directions: int, hidden: int, batch_first: bool) -> tuple[int, int, int]:
    """Check lengths and h0; return B, D and H."""
    packed = x.dim() == 2
    if packed:
        checks.require(lengths.dim() == 1, op, f"lengths has shape {list(lengths.shape)}", "[B]")
    batch = lengths.shape[0] if packed else x.shape[0 if batch_first else 1]
    frames = x.shape[1] if batch_first and not packed else x.shape[0]
    checks.lengths(op, lengths, x, batch, frames)
    if packed and checks.readable(lengths):
        total = int(lengths.sum())
        checks.require(total == frames, op, f"lengths add up to {total}", f"the packed frames, {frames}")
    checks.optional(op, "h0", h0, x, (directions, batch, hidden), "[D, B, H]")
    return batch, directions, hidden


def _check(
    op, x, weights, h0, lengths, biased, batch_first, total=None, dtypes=(torch.float32, torch.float64)
) -> tuple[int, int, int]:
    """Check the arguments of a form of ``gru_layer``; return B, D and H."""
    checks.first(op, "x", x, *dtypes)
    check_frames(op, x, lengths, batch_first)
    hidden = _check_weights(op, x, weights, biased, 2)
    directions = len(weights) // (4 if biased else 2)
    batch, *_ = check_rows(op, x, h0, lengths, directions, hidden, batch_first)
    if total is not None and (lengths is None or x.dim() == 2 or checks.readable(lengths)):
        valid = math.prod(x.shape[:-1]) if lengths is None or x.dim() == 2 else int(lengths.sum())
        checks.require(total == valid, op, f"total is {total}", f"the number of valid frames, {valid}")
    return batch, directions, hidden


def _check_backward(grad_y, grad_h_n, x, weights, h0, lengths, gates, states, biased, batch_first, needs_weights):
    op = "gru_layer_backward"
    batch, directions, hidden = _check(op, x, weights, h0, lengths, biased, batch_first)
    wide = (*x.shape[:-1], directions * hidden)
    checks.operand(op, "grad_y", grad_y, x, wide, "y's shape")
    checks.operand(op, "grad_h_n", grad_h_n, x, (directions, batch, hidden), "[D, B, H]")
    total = gates.shape[0] if gates.dim() else 0
    if lengths is None or x.dim() == 2:
        total = math.prod(x.shape[:-1])
    elif checks.readable(lengths):
        total = int(lengths.sum())
    checks.operand(op, "gates", gates, x, (total, directions, 4 * hidden), "[N, D, 4H]")
    checks.operand(op, "states", states, x, (total, directions, hidden), "[N, D, H]")
    count = len(needs_weights)
    one_each = f"one for each weight, {len(weights)}"
    checks.require(count == len(weights), op, f"needs_weights has {count} values", one_each)


def _check_cell(x, weights, h, biased) -> int:
    """Check the arguments of ``gru_cell``; return H."""
    checks.first("gru_cell", "x", x, *_INFERRED)
    good = x.dim() == 2 and 0 not in x.shape
    checks.require(good, "gru_cell", f"x has shape {list(x.shape)}", "[B, I] with no size 0")
    hidden = _check_weights("gru_cell", x, weights, biased, 1)
    checks.optional("gru_cell", "h", h, x, (x.shape[0], hidden), "[B, H]")
    return hidden


def new_outputs(x, weights, h0, lengths, biased, reset_after, batch_first) -> tuple[Tensor, Tensor]:
    """Check the arguments of ``gru_layer`` and return uninitialised outputs."""
    batch, directions, hidden = _check("gru_layer", x, weights, h0, lengths, biased, batch_first, dtypes=_INFERRED)
    return x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(directions, batch, hidden)


def new_saved(x, weights, h0, lengths, total, biased, reset_after, batch_first) -> tuple[Tensor, ...]:
    """Check the arguments of ``gru_layer_forward`` and return uninitialised outputs."""
    batch, directions, hidden = _check("gru_layer_forward", x, weights, h0, lengths, biased, batch_first, total)
    outputs = x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(directions, batch, hidden)
    return *outputs, x.new_empty(total, directions, 4 * hidden), x.new_empty(total, directions, hidden)


def new_gradients(
    grad_y, grad_h_n, x, weights, h0, lengths, gates, states, biased, reset_after, batch_first, needs_x, needs_weights
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Check the arguments of ``gru_layer_backward`` and return uninitialised gradients."""
    _check_backward(grad_y, grad_h_n, x, weights, h0, lengths, gates, states, biased, batch_first, needs_weights)
    grads = [weight.new_empty(weight.shape if needed else 0) for weight, needed in zip(weights, needs_weights)]
    return x.new_empty(x.shape if needs_x else 0), grads, grad_h_n.new_empty(grad_h_n.shape)


def new_state(x, weights, h, biased, reset_after) -> Tensor:
    """Check the arguments of ``gru_cell`` and return an uninitialised state."""
    return x.new_empty(x.shape[0], _check_cell(x, weights, h, biased))


class Layer(torch.autograd.Function):
    """``gru_layer_forward`` with its gradients; called with the op's arguments and then the weights one by one.

    A derivative of the op itself would cost torch 0.1 ms to take the list of weights apart, more than a small call.
    """

    @staticmethod
    def forward(ctx, x, h0, lengths, total, biased, reset_after, batch_first, *weights):
        y, h_n, gates, states = gru_layer_forward(x, weights, h0, lengths, total, biased, reset_after, batch_first)
        ctx.flags, ctx.states = (biased, reset_after, batch_first), h_n.shape
        ctx.save_for_backward(x, h0, lengths, gates, states, *weights)
        ctx.set_materialize_grads(False)
        return y, h_n

    @staticmethod
    def backward(ctx, grad_y, grad_h_n):
        x, h0, lengths, gates, states, *weights = ctx.saved_tensors
        (needs_x, needs_h0), needs_weights = ctx.needs_input_grad[:2], ctx.needs_input_grad[7:]
        if grad_y is None:
            grad_y = x.new_zeros(*x.shape[:-1], ctx.states[0] * ctx.states[2])
        grad_h_n = x.new_zeros(ctx.states) if grad_h_n is None else grad_h_n
        # A second derivative, or many gradients at once, need ops that torch can differentiate and batch.
        if torch.is_grad_enabled() or _torch_compat.batched(grad_y) or _torch_compat.batched(grad_h_n):
            first = x.new_zeros(ctx.states) if h0 is None else h0
            grad_x, grad_h0, *grads = _gradients(grad_y, grad_h_n, x, weights, first, (lengths, *ctx.flags))
        else:
            grad_x, grads, grad_h0 = gru_layer_backward(
                grad_y, grad_h_n, x, weights, h0, lengths, gates, states, *ctx.flags, needs_x, needs_weights
            )
        grads = (grad if needed else None for grad, needed in zip(grads, needs_weights))
        return grad_x if needs_x else None, grad_h0 if needs_h0 else None, *(None,) * 5, *grads


def _recurrence(gx, w_hh, b_hh, h0, lengths, reset_after):
    return gru.gru(gx, w_hh, b_hh, h0, lengths, reset_after=reset_after)


registry.register(
    "gru",
    "gru_layer_forward(Tensor x, Tensor[] weights, Tensor? h0, Tensor? lengths, int total, bool biased,"
    " bool reset_after, bool batch_first) -> (Tensor y, Tensor h_n, Tensor gates, Tensor states)",
    reference=forward_reference,
    fake=new_saved,
    inference=True,
)
registry.register(
    "gru",
    "gru_layer_backward(Tensor grad_y, Tensor grad_h_n, Tensor x, Tensor[] weights, Tensor? h0, Tensor? lengths,"
    " Tensor gates, Tensor states, bool biased, bool reset_after, bool batch_first, bool needs_x,"
    " bool[] needs_weights) -> (Tensor grad_x, Tensor[] grad_weights, Tensor grad_h0)",
    reference=reference_backward,
    fake=new_gradients,
    inference=True,
)
registry.register(
    "gru",
    "gru_layer(Tensor x, Tensor[] weights, Tensor? h0, Tensor? lengths, bool biased, bool reset_after,"
    " bool batch_first) -> (Tensor y, Tensor h_n)",
    reference=reference,
    fake=new_outputs,
    inference=True,
)
registry.register(
    "gru",
    "gru_cell(Tensor x, Tensor[] weights, Tensor? h, bool biased, bool reset_after) -> Tensor",
    reference=cell_reference,
    fake=new_state,
    inference=True,
)

# The overloads themselves: looking them up takes longer than the checks of a call.
gru_layer, gru_cell = torch.ops.ser_fast.gru_layer.default, torch.ops.ser_fast.gru_cell.default
gru_layer_forward = torch.ops.ser_fast.gru_layer_forward.default
gru_layer_backward = torch.ops.ser_fast.gru_layer_backward.default

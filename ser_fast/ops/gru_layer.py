"""GRU layer and cell in inference: the input's projection and the recurrence as one torch op without a gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, gru

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


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
    _check(x, weights, h0, lengths, biased, batch_first)
    if x.dtype == torch.bfloat16:
        x, h0 = x.float(), None if h0 is None else h0.float()
        wide = reference(x, [weight.float() for weight in weights], h0, lengths, biased, reset_after, batch_first)
        return wide[0].bfloat16(), wide[1].bfloat16()
    w_ih, w_hh, *biases = (torch.stack(weights[place :: 4 if biased else 2]) for place in range(4 if biased else 2))
    b_ih, b_hh = biases or (None, None)
    gx = F.linear(x, w_ih.flatten(0, 1), None if b_ih is None else b_ih.flatten()).unflatten(-1, w_hh.shape[:2])
    turned = batch_first and x.dim() == 3
    y, h_n, _ = gru.reference(gx.transpose(0, 1) if turned else gx, w_hh, b_hh, h0, lengths, reset_after)
    return (y.transpose(0, 1) if turned else y).flatten(-2).contiguous(), h_n


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


def _check(x, weights, h0, lengths, biased, batch_first) -> tuple[int, int, int]:
    """Check the arguments of ``gru_layer``; return B, D and H."""
    checks.first("gru_layer", "x", x, *_DTYPES)
    check_frames("gru_layer", x, lengths, batch_first)
    hidden = _check_weights("gru_layer", x, weights, biased, 2)
    return check_rows("gru_layer", x, h0, lengths, len(weights) // (4 if biased else 2), hidden, batch_first)


def _check_cell(x, weights, h, biased) -> int:
    """Check the arguments of ``gru_cell``; return H."""
    checks.first("gru_cell", "x", x, *_DTYPES)
    good = x.dim() == 2 and 0 not in x.shape
    checks.require(good, "gru_cell", f"x has shape {list(x.shape)}", "[B, I] with no size 0")
    hidden = _check_weights("gru_cell", x, weights, biased, 1)
    checks.optional("gru_cell", "h", h, x, (x.shape[0], hidden), "[B, H]")
    return hidden


def new_outputs(x, weights, h0, lengths, biased, reset_after, batch_first) -> tuple[Tensor, Tensor]:
    """Check the arguments of ``gru_layer`` and return uninitialised outputs."""
    batch, directions, hidden = _check(x, weights, h0, lengths, biased, batch_first)
    return x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(directions, batch, hidden)


def new_state(x, weights, h, biased, reset_after) -> Tensor:
    """Check the arguments of ``gru_cell`` and return an uninitialised state."""
    return x.new_empty(x.shape[0], _check_cell(x, weights, h, biased))


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

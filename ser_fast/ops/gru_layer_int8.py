"""GRU layer in inference with int8 weights, as one torch op without a gradient."""

import torch
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, gru_layer


def rows_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix ``[N, K]`` in int8 and the scale ``[N]`` of each row, max |w| / 127.

    The product of both differs from the matrix by half a scale at most.

    Example:
        >>> q, scale = rows_to_int8(torch.tensor([[0.5, -1.27]]))
        >>> q.tolist(), scale.tolist()
        ([[50, -127]], [0.009999999776482582])
    """
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def reference(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    biases: list[Tensor],
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    reset_after: bool = True,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reference implementation of ``ser_fast::gru_layer_int8``: the layer with ``weights * scales``.

    The kernel rounds the state to a multiple of 2^-14 in the recurrent products.

    Args:
        x: float32 frames, shaped as in ``gru_layer``.
        weights: int8 w_ih ``[3H, I]`` and w_hh ``[3H, H]`` of each direction.
        scales: float32 factors of their rows ``[3H]``, one for each tensor of ``weights``.
        biases: float32 b_ih and b_hh ``[3H]`` of each direction, or an empty list.
        h0, lengths, reset_after, batch_first: as in ``gru_layer``.

    Returns:
        ``y`` and ``h_n`` as from ``gru_layer``.
    """
    _check(x, weights, scales, biases, h0, lengths, batch_first)
    wide = [weight * scale[:, None] for weight, scale in zip(weights, scales)]
    given = []
    for first in range(0, len(wide), 2):
        given += wide[first : first + 2] + biases[first : first + 2]
    return gru_layer.reference(x, given, h0, lengths, bool(biases), reset_after, batch_first)


def _check(x, weights, scales, biases, h0, lengths, batch_first) -> tuple[int, int, int]:
    """Check the arguments; return B, D and H."""
    op = "gru_layer_int8"
    checks.first(op, "x", x, torch.float32)
    gru_layer.check_frames(op, x, lengths, batch_first)
    count = len(weights)
    checks.require(count in (2, 4), op, f"weights has {count} tensors", "w_ih and w_hh of 1 or 2 directions")
    hidden = gru_layer.check_hidden(op, weights)
    shapes = ((3 * hidden, x.shape[-1]), (3 * hidden, hidden)), ("[3H, I]", "[3H, H]")
    vectors = ((3 * hidden,),) * 2, ("[3H]",) * 2
    _check_parts(op, "weights", weights, count, x, torch.int8, *shapes)
    _check_parts(op, "scales", scales, count, x, torch.float32, *vectors)
    _check_parts(op, "biases", biases, count if biases else 0, x, torch.float32, *vectors)
    return gru_layer.check_rows(op, x, h0, lengths, count // 2, hidden, batch_first)


def _check_parts(op, name, given, count, like, dtype, shapes, letters) -> None:
    """Check that there are ``count`` tensors, of one shape at even places and another at odd ones."""
    checks.require(len(given) == count, op, f"{name} has {len(given)} tensors", f"{count}")
    for place, tensor in enumerate(given):
        checks.operand(op, f"{name}[{place}]", tensor, like, shapes[place % 2], letters[place % 2], dtype)


def new_outputs(x, weights, scales, biases, h0, lengths, reset_after, batch_first) -> tuple[Tensor, Tensor]:
    """Check the arguments and return uninitialised outputs."""
    batch, directions, hidden = _check(x, weights, scales, biases, h0, lengths, batch_first)
    return x.new_empty(*x.shape[:-1], directions * hidden), x.new_empty(directions, batch, hidden)


registry.register(
    "gru",
    "gru_layer_int8(Tensor x, Tensor[] weights, Tensor[] scales, Tensor[] biases, Tensor? h0, Tensor? lengths,"
    " bool reset_after, bool batch_first) -> (Tensor y, Tensor h_n)",
    reference=reference,
    fake=new_outputs,
    inference=True,
)

gru_layer_int8 = torch.ops.ser_fast.gru_layer_int8.default

"""Gray image of a log power spectrogram with its delta and delta-delta, the input of CGRU's convolutions."""

import torch
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, onnx
from ser_fast.ops.lengths import frame_mask, unpadded

LEAST_DEVIATION = 1e-3  # kLeastDeviation in kernels/gray_deltas.h


def reference(x: Tensor, range: float, lengths: Tensor | None, packed_frames: int | None = None) -> Tensor:
    """Reference implementation of ``ser_fast::gray_deltas`` in plain PyTorch, differentiable."""
    _check(x, range, lengths, packed_frames)
    given = torch.full((x.shape[0],), x.shape[1], device=x.device) if lengths is None else lengths
    v = standardize(gray(x, range, given), given)
    slope = delta(v, given)
    image = torch.stack([v, slope, delta(slope, given)], dim=-1)
    return image if packed_frames is None else unpadded(image, given)


def gray(x: Tensor, range: float, lengths: Tensor) -> Tensor:
    """Return gray levels ``[B, T, F]`` of x: 1 at the row's maximum, 0 at ``range`` below it and in padding."""
    valid = frame_mask(lengths, x.shape[1])[..., None]
    peak = x.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
    return ((x - peak) / range + 1).clamp(0, 1).masked_fill(~valid, 0)


def standardize(x: Tensor, lengths: Tensor) -> Tensor:
    """Scale each row's valid frames to mean 0 and variance 1 over frames and features together.

    The standard deviation is clamped to at least 1e-3, so a constant row becomes 0.

    Args:
        x: ``[B, T, F]``.
        lengths: valid frames of each row ``[B]``.

    Returns:
        ``[B, T, F]``, 0 past each length.

    Example:
        >>> import torch
        >>> standardize(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2])).tolist()
        [[[-1.0], [1.0], [0.0]]]
    """
    valid = frame_mask(lengths, x.shape[1])[..., None]
    count = (lengths.clamp(min=1) * x.shape[2])[:, None, None]
    centred = (x - x.masked_fill(~valid, 0).sum((1, 2), keepdim=True) / count).masked_fill(~valid, 0)
    variance = centred.square().sum((1, 2), keepdim=True) / count
    return centred / variance.clamp(min=LEAST_DEVIATION**2).sqrt()  # clamped first: sqrt has no derivative at 0


def delta(x: Tensor, lengths: Tensor) -> Tensor:
    """Return the delta ``Σ n (x[t+n] - x[t-n]) / (2 Σ n²)``, n = 1, 2; edge frames are repeated beyond the ends."""
    batch, frames, _ = x.shape
    valid = frame_mask(lengths, frames)[..., None]
    last = x[torch.arange(batch, device=x.device), (lengths - 1).clamp(min=0)][:, None]
    x = torch.where(valid, x, last)
    padded = torch.cat([x[:, :1], x[:, :1], x, last, last], dim=1)
    slope = 2 * (padded[:, 4:] - padded[:, :-4]) + padded[:, 3:-1] - padded[:, 1:-3]
    return (slope / 10).masked_fill(~valid, 0)


def _check(x: Tensor, range: float, lengths: Tensor | None, packed_frames: int | None) -> None:
    op = "gray_deltas"
    checks.first(op, "x", x, *checks.FLOATING)
    sizes = tuple(x.shape)
    checks.require(len(sizes) == 3 and 0 not in sizes, op, f"x has shape {list(sizes)}", "[B, T, F] with no size 0")
    checks.require(range > 0, op, f"range is {range:f}", "above 0")
    checks.lengths(op, lengths, x, sizes[0], sizes[1])
    if packed_frames is not None and (lengths is None or checks.readable(lengths)):
        total = sizes[0] * sizes[1] if lengths is None else int(lengths.sum())
        allowed = f"the sum of the lengths, {total}"
        checks.require(packed_frames == total, op, f"packed_frames is {packed_frames}", allowed)


def new_output(x: Tensor, range: float, lengths: Tensor | None, packed_frames: int | None) -> Tensor:
    """Check the arguments and return an uninitialised output."""
    _check(x, range, lengths, packed_frames)
    return x.new_empty(*(x.shape[:2] if packed_frames is None else (packed_frames,)), x.shape[2], 3)


registry.register(
    "gray_deltas",
    "gray_deltas(Tensor x, float range, Tensor? lengths, SymInt? packed_frames) -> Tensor",
    reference=reference,
    fake=new_output,
)


def gray_deltas(x: Tensor, range: float, lengths: Tensor | None = None, *, packed: bool = False) -> Tensor:
    """Return the standardised gray image of a log power spectrogram, its delta and its delta-delta.

    Args:
        x: log power, float32 or float64.
        range: difference from a row's largest log power at which a pixel is black.
        lengths: valid frames of each row, int64 or int32, on x's device; all frames if None.
        packed: return the valid frames only, one row after the other; the lengths' values must be readable.

    Shape:
        x ``[B, T, F]``, lengths ``[B]``; output ``[B, T, F, 3]``, 0 past each length, or packed ``[N, F, 3]``.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value.

    Example:
        >>> import torch
        >>> gray_deltas(torch.randn(2, 10, 7), 18.0, torch.tensor([10, 4])).shape
        torch.Size([2, 10, 7, 3])
        >>> gray_deltas(torch.randn(2, 10, 7), 18.0, torch.tensor([10, 4]), packed=True).shape
        torch.Size([14, 7, 3])
    """
    checks.given("gray_deltas", x=x)
    checks.tensors("gray_deltas", x=x, lengths=lengths)
    packed_frames = None
    if packed:
        packed_frames = x.shape[0] * x.shape[1] if lengths is None else int(lengths.sum())
    plain = onnx.exporting() or checks.transforming()
    return (reference if plain else torch.ops.ser_fast.gray_deltas)(x, range, lengths, packed_frames)

"""Ragged batches as packed frames and back, with derivatives that cost no more than the copy itself."""

import torch
from torch import Tensor


def join(rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the first ``sizes[b]`` frames of each row of ``[B, T, W]``, one row after the other: ``[N, W]``.

    Example:
        >>> join(torch.arange(6).view(2, 3, 1), [3, 1]).tolist()
        [[0], [1], [2], [3]]
    """
    return torch.cat([row[:size] for row, size in zip(rows, sizes)])


def part(packed: Tensor, sizes: list[int], frames: int, batch_first: bool) -> Tensor:
    """Return packed ``[N, W]`` zero-padded: ``[B, frames, W]`` with ``batch_first``, else ``[frames, B, W]``.

    Example:
        >>> part(torch.tensor([[1], [2], [3]]), [2, 1], frames=2, batch_first=True).tolist()
        [[[1], [2]], [[3], [0]]]
    """
    batch, width = len(sizes), packed.shape[1]
    shape = (batch, frames, width) if batch_first else (frames, batch, width)
    padded = packed.new_zeros(shape)
    rows = padded if batch_first else padded.transpose(0, 1)
    for row, values in zip(rows, packed.split(sizes)):
        row[: len(values)] = values
    return padded


def valid_frames(rows: Tensor, sizes: list[int]) -> Tensor:
    """Return :func:`join` of ``[B, T, W]`` with its derivative; a view if all frames are valid."""
    return rows.flatten(0, 1) if min(sizes) == rows.shape[1] else Join.apply(rows, sizes, True)


class Join(torch.autograd.Function):
    """:func:`join`; torch's own derivative of it would fill a whole batch with zeros for every row."""

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int], batch_first: bool) -> Tensor:
        ctx.layout = sizes, rows.shape[1], batch_first
        return join(rows, sizes)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        padded = Part.apply(grad, *ctx.layout)
        return padded if ctx.layout[2] else padded.transpose(0, 1), None, None


class Part(torch.autograd.Function):
    """:func:`part`, whose derivative is :class:`Join`."""

    @staticmethod
    def forward(ctx, packed: Tensor, sizes: list[int], frames: int, batch_first: bool) -> Tensor:
        ctx.sizes, ctx.batch_first = sizes, batch_first
        return part(packed, sizes, frames, batch_first)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows = grad if ctx.batch_first else grad.transpose(0, 1)
        return Join.apply(rows, ctx.sizes, ctx.batch_first), None, None, None

"""Valid frames of padded batches."""

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return the mask of the valid frames.

    Args:
        lengths: frames of each row, ``[B]``.
        frames: T, frames of the padded batch.

    Returns:
        bool ``[B, T]``, True where t < lengths[b].

    Example:
        >>> import torch
        >>> frame_mask(torch.tensor([3, 1]), 3)
        tensor([[ True,  True,  True],
                [ True, False, False]])
    """
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def mask_past(x: Tensor, lengths: Tensor | None, value: float = 0) -> Tensor:
    """Return ``x`` ``[B, T, ...]`` with ``value`` past each row's length; ``x`` itself without lengths.

    Example:
        >>> import torch
        >>> mask_past(torch.ones(2, 3), torch.tensor([3, 1])).tolist()
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if lengths is None:
        return x
    past = ~frame_mask(lengths, x.shape[1])
    return x.masked_fill(past[(..., *(None,) * (x.dim() - 2))], value)


def places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frame and the row of each packed frame, ``[N]`` each.

    Example:
        >>> places(torch.tensor([2, 0, 1]))
        (tensor([0, 1, 0]), tensor([0, 0, 2]))
    """
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return torch.arange(len(rows), device=lengths.device) - starts[rows], rows


def padded(packed: Tensor, lengths: Tensor) -> Tensor:
    """Return packed frames ``[N, ...]`` as ``[B, T, ...]``, 0 past each length.

    Example:
        >>> padded(torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1])).tolist()
        [[1, 2], [0, 0], [3, 0]]
    """
    frames, rows = places(lengths)
    zeros = packed.new_zeros(len(lengths), int(lengths.max()), *packed.shape[1:])
    return zeros.index_put((rows, frames), packed)


def unpadded(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return the valid frames of ``[B, T, ...]``, row after row, ``[N, ...]``.

    Example:
        >>> unpadded(torch.tensor([[1, 2], [0, 0], [3, 0]]), torch.tensor([2, 0, 1])).tolist()
        [1, 2, 3]
    """
    frames, row = places(lengths)
    return rows[row, frames]

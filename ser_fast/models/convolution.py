"""Convolutions with max-pooling of padded batches; :func:`halve` and :func:`quarter` do the same in plain PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.ops import checks
from ser_fast.ops.conv_pool import conv_pool
from ser_fast.ops.lengths import frame_mask


class ConvPool(nn.Conv2d):
    """``nn.Conv2d`` with "same" zero padding, followed by max-pooling by 2 and ReLU: :func:`conv_pool` as a module.

    Args:
        in_channels: K, channels of a filter; x may have more, see :func:`conv_pool`.
        out_channels: O.
        kernel_size: frames and bins of a filter, both odd.

    Shape:
        x ``[B, T, F, C]`` or packed ``[N, F, C]``, lengths ``[B]``; output ``[B, ceil(T / 2), ceil(F / 2), O]`` or
        packed; the last two axes are swapped with ``channels_last=False``.

    Example:
        >>> ConvPool(3, 16, (5, 3))(torch.randn(2, 100, 129, 3)).shape
        torch.Size([2, 50, 65, 16])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int]):
        super().__init__(in_channels, out_channels, kernel_size, padding="same")

    def forward(self, x: Tensor, lengths: Tensor | None = None, channels_last: bool = True) -> Tensor:
        """Return the pooled convolution, 0 past ``ceil(lengths / 2)``."""
        return conv_pool(x, self.weight, self.bias, lengths, channels_last=channels_last)


def halve(x: Tensor, lengths: Tensor) -> Tensor:
    """Max-pool time and frequency by 2, then apply ReLU; an odd last frame or bin is kept.

    Frames past the length are set to 0 before pooling, so they never exceed a rectified valid pixel.

    Args:
        x: ``[B, C, T, F]``.
        lengths: valid frames of each row ``[B]``.

    Returns:
        ``[B, C, ceil(T / 2), ceil(F / 2)]``.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 9.0]).view(1, 1, 3, 1)
        >>> halve(x, torch.tensor([2])).flatten().tolist()
        [2.0, 0.0]
    """
    x = x * frame_mask(lengths, x.shape[2])[:, None, :, None]
    if torch.compiler.is_compiling():
        # ceil_mode would specialise the graph to odd or even sizes; before ReLU, padding with 0 is equivalent.
        # Written as 2 * ceil(n / 2): torch 2.11 cannot prove that n + n % 2 is even.
        frames, bins = ((size + 1) // 2 * 2 for size in x.shape[2:])
        return F.relu(F.max_pool2d(F.pad(x, (0, bins - x.shape[3], 0, frames - x.shape[2])), 2))
    return F.relu(F.max_pool2d(x, 2, ceil_mode=True))


def quarter(convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Apply ``convolve``, which divides the number of frames by 4, to a padded batch.

    On CPU it runs row by row, so that the feature maps of a row stay in the cache.

    Args:
        convolve: maps ``[b, t, F]`` and lengths ``[b]`` to ``[b, ceil(t / 4), D]``.
        x: ``[B, T, F]``.
        lengths: valid frames of each row ``[B]``.

    Returns:
        Features ``[B, ceil(T / 4), D]`` and their lengths, ``ceil(lengths / 4)``.

    Example:
        >>> features, lengths = quarter(lambda x, _: x[:, ::4], torch.zeros(2, 9, 5), torch.tensor([9, 6]))
        >>> features.shape, lengths.tolist()
        (torch.Size([2, 3, 5]), [3, 2])
    """
    quarters = (lengths + 3) // 4
    if not checks.readable(lengths):
        return convolve(x, lengths), quarters
    rows = []
    for row, size in zip(x, lengths.tolist()):
        # A convolution needs a frame; an empty row's length of 0 masks its output.
        rows.append(convolve(row[None, : max(size, 1)], torch.tensor([size]))[0])
    frames = (x.shape[1] + 3) // 4
    return torch.stack([F.pad(row, (0, 0, 0, frames - len(row))) for row in rows]), quarters

"""Max-pooling that keeps padding out, and convolutions of a padded batch row by row, which a CPU does faster."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.models.masking import frame_mask
from ser_fast.ops import checks


def halve(x: Tensor, lengths: Tensor) -> Tensor:
    """Max-pool ``[B, C, T, F]`` by two and rectify; an odd last frame or bin is kept.

    Frames past the length are zero before the pooling, so that after the rectifier they neither win nor remain.
    """
    x = x * frame_mask(lengths, x.shape[2])[:, None, :, None]
    if torch.compiler.is_compiling():
        # ceil_mode ties a graph to odd or even sizes; under the rectifier zeros for the missing pixels do the same.
        # The padded sizes are twice a half, for torch 2.11 does not see that n + n % 2 is even.
        frames, bins = ((size + 1) // 2 * 2 for size in x.shape[2:])
        return F.relu(F.max_pool2d(F.pad(x, (0, bins - x.shape[3], 0, frames - x.shape[2])), 2))
    return F.relu(F.max_pool2d(x, 2, ceil_mode=True))


def quarter(convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``convolve(x, lengths)``, which gives ``[B, T / 4, D]`` of ``x`` ``[B, T, F]``, and a quarter of the lengths.

    Where lengths can be read it goes row by row: the planes of a single row stay in the cache, where those of a batch
    go through memory and cost more than their arithmetic.
    """
    quarters = (lengths + 3) // 4
    if not checks.readable(lengths):
        return convolve(x, lengths), quarters
    rows = []
    for row, size in zip(x, lengths.tolist()):
        # A row without frames gives one frame of nothing, which its length hides.
        rows.append(convolve(row[None, : max(size, 1)], torch.tensor([size]))[0])
    frames = (x.shape[1] + 3) // 4
    return torch.stack([F.pad(row, (0, 0, 0, frames - len(row))) for row in rows]), quarters

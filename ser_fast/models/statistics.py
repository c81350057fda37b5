"""Statistics over the frames of padded batches that a mask selects; 0 where it selects none."""

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[B, D]`` of ``[B, T, D]`` over the frames of the mask ``[B, T]``."""
    mask, count = mask[..., None], mask.sum(1).clamp(min=1)[:, None]
    mean = x.masked_fill(~mask, 0).sum(1) / count
    return mean, ((x - mean[:, None]).masked_fill(~mask, 0).square().sum(1) / count).sqrt()


def distribution(x: Tensor, mask: Tensor) -> Tensor:
    """Mean, standard deviation and quantiles, ``[B, 7 D]``; a quantile is linear between two values."""
    x, mask, count = F.pad(x, (0, 0, 0, 1)), F.pad(mask, (0, 1)), mask.sum(1)  # there may be no frame
    ordered = x.mT.masked_fill(~mask[:, None], torch.inf).sort(2).values  # [B, D, T]
    place = torch.tensor(QUANTILES, device=x.device, dtype=x.dtype) * (count - 1).clamp(min=0)[:, None]
    low = place.long()[:, None].expand(-1, x.shape[2], -1)
    high = (low + 1).minimum((count - 1).clamp(min=0)[:, None, None])
    quantiles = torch.lerp(ordered.gather(2, low), ordered.gather(2, high), (place % 1)[:, None])
    quantiles = quantiles.masked_fill((count == 0)[:, None, None], 0)
    return torch.cat([*moments(x, mask), quantiles.flatten(1)], 1)


def trend(x: Tensor, mask: Tensor) -> Tensor:
    """The regression line's rise ``[B, D]`` of ``[B, T, D]`` over as many frames as the mask selects."""
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[None, :, None].expand(len(x), -1, 1)
    count = mask.sum(1)[:, None]
    centred = (time - moments(time, mask)[0][:, None]).masked_fill(~mask[..., None], 0)
    return (centred * x).sum(1) / centred.square().sum(1).clamp(min=1) * count


def slopes(x: Tensor) -> Tensor:
    """The usual regression slope over two frames to either side, ``[B, T - 4, D]``: of frames 2 to T - 3."""
    return (2 * (x[:, 4:] - x[:, :-4]) + x[:, 3:-1] - x[:, 1:-3]) / 10

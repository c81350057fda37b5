"""Statistics over the valid frames of padded batches."""

import torch
from torch import Tensor

from ser_fast.ops import checks
from ser_fast.ops.lengths import mask_past


def sample_lengths(model: str, wave: Tensor, lengths: Tensor | None, shape: str = "[B, N]") -> Tensor:
    """Return the lengths ``[B]`` in samples of a batch: ``lengths``, or N in every row if None.

    Args:
        model: name for error messages.
        wave: ``[B, N]``, or as ``shape`` says.
        lengths: samples of each row ``[B]``.
        shape: names of the dimensions of ``wave``; the second is that of ``lengths``.

    Raises:
        RuntimeError: if an argument is not a dense tensor, or ``wave`` has another number of dimensions.

    Example:
        >>> sample_lengths("CGRU", torch.zeros(2, 16000), None).tolist()
        [16000, 16000]
    """
    checks.tensors(model, wave=wave, lengths=lengths)
    good = wave.dim() == shape.count(",") + 1
    checks.require(good, model, f"wave has shape {list(wave.shape)}", shape)
    return torch.full((wave.shape[0],), wave.shape[1], device=wave.device) if lengths is None else lengths


def masked_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean ``[B, D]`` over the valid frames of ``x``; 0 for a row without valid frames.

    Args:
        x: ``[B, T, D]``.
        lengths: valid frames of each row ``[B]``.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2])).tolist()
        [[2.0]]
    """
    return mask_past(x, lengths).sum(1) / lengths.clamp(min=1)[:, None]

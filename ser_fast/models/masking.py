"""Padded frames, kept from leaking into valid ones."""

import torch
from torch import Tensor

from ser_fast.ops import checks


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True on the valid frames: ``[B, T]`` from lengths ``[B]``."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def full_lengths(wave: Tensor) -> Tensor:
    """The lengths of a batch ``[B, N]`` without padding."""
    checks.require(wave.dim() == 2, "model", f"wave has shape {list(wave.shape)}", "[B, N]")
    return torch.full((wave.shape[0],), wave.shape[1], device=wave.device)


def masked_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the valid frames of ``[B, T, D]``; 0 for a row without any."""
    valid = frame_mask(lengths, x.shape[1])[..., None]
    return x.masked_fill(~valid, 0).sum(1) / lengths.clamp(min=1)[:, None]


def standardize(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean 0 and variance 1 over each row's valid pixels of [B, T, F]; a row without contrast becomes 0."""
    valid = frame_mask(lengths, x.shape[1])[..., None]
    count = (lengths.clamp(min=1) * x.shape[2])[:, None, None]
    centred = (x - x.masked_fill(~valid, 0).sum((1, 2), keepdim=True) / count).masked_fill(~valid, 0)
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1e-3)

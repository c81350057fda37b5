"""Module for frame attention pooling."""

import math

import torch
from torch import Tensor, nn

from ser_fast.ops.attention_pool import attention_pool


class AttentionPool(nn.Module):
    """:func:`attention_pool` with a learned ``weight`` ``[embed_dim]``."""

    def __init__(self, embed_dim: int):
        super().__init__()
        if embed_dim < 1:
            raise ValueError(f"AttentionPool: embed_dim is {embed_dim}; it must be at least 1")
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.empty(embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.embed_dim)
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"

    def forward(self, h: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """``pooled`` ``[B, D]`` of ``h`` ``[B, T, D]``, and with ``return_weights`` the weights ``[B, T]`` too."""
        pooled, weights = attention_pool(h, self.weight, lengths)
        return (pooled, weights) if return_weights else pooled

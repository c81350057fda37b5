"""Module for frame attention pooling."""

import math

import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.nn.inference import recordable
from ser_fast.ops.attention_pool import attention_pool


class AttentionPool(nn.Module):
    """Frame attention pooling with a learned scoring vector.

    α_t = exp(w·h_t) / Σ_s exp(w·h_s) over the valid frames, pooled = Σ_t α_t h_t: equation 5 of the attention CGRU
    paper (Computer Systems & Applications 32(1), 2023), by :func:`ser_fast.functional.attention_pool`.

    Args:
        embed_dim: D, features of a frame.

    Attributes:
        weight: w ``[D]``, drawn uniformly from ±1/√D.

    Shape:
        h ``[B, T, D]``, lengths ``[B]``; pooled ``[B, D]``, weights ``[B, T]``.

    Raises:
        ValueError: if ``embed_dim`` is below 1.

    Example:
        >>> import torch
        >>> pool = AttentionPool(256)
        >>> pooled, weights = pool(torch.randn(4, 300, 256), torch.tensor([300, 120, 7, 42]), return_weights=True)
        >>> pooled.shape, weights.shape
        (torch.Size([4, 256]), torch.Size([4, 300]))
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        require(embed_dim >= 1, f"AttentionPool: embed_dim is {embed_dim}", "at least 1")
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.empty(embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the scoring vector."""
        bound = 1 / math.sqrt(self.embed_dim)
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"

    def forward(
        self, h: Tensor, lengths: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool frames.

        Args:
            h: frames ``[B, T, D]``.
            lengths: valid frames of each row, int64 or int32 ``[B]``, on h's device; all frames if None.
            return_weights: also return the weights.

        Returns:
            ``pooled`` ``[B, D]``, or ``(pooled, weights)`` with weights ``[B, T]``, 0 past each length.

        Raises:
            RuntimeError: if an argument has an invalid shape, dtype, device or value.
        """
        h, lengths = recordable(h, lengths)
        pooled, weights = attention_pool(h, self.weight, lengths)
        return (pooled, weights) if return_weights else pooled

"""Multi-head self-attention over the valid frames of a padded batch, quick in training on a CPU too."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser_fast.models.masking import frame_mask
from ser_fast.ops import checks

KEPT_WEIGHTS = 1 << 27  # attention weights that a training step keeps for its backward: half a gigabyte in float32
CHUNK_WEIGHTS = 1 << 24  # attention weights that are computed at once


class MultiHeadSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in each head, over the valid frames, and an output projection (equations 6 and 7).

    Computes what ``nn.MultiheadAttention(embed_dim, num_heads)`` does on one input; ``in_proj_weight`` is
    ``in_proj.weight`` here. ``num_heads`` must divide ``embed_dim``.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, lengths: Tensor, return_weights: bool = False):
        """``[B, T, D]`` of ``x`` ``[B, T, D]`` with lengths ``[B]``; on request also weights ``[B, heads, T, T]``."""
        batch, frames, width = x.shape
        # An empty row attends to its padding, since a softmax over nothing is NaN; the pooling drops it again.
        valid = (frame_mask(lengths, frames) | (lengths == 0)[:, None])[:, None, None, :]
        q, k, v = self.in_proj(x).view(batch, frames, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = None
        drops = self.training and self.dropout > 0
        # scaled_dot_product_attention forgets its fast path on CPU when it drops out, and never gives the weights.
        slow = drops and not x.is_cuda
        if slow and not return_weights and checks.readable(lengths):
            mixed = self._attend_by_rows(q, k, v, lengths)
        elif slow or return_weights:
            weights = torch.softmax((_scaled(q) @ k.mT).masked_fill(~valid, -torch.inf), dim=-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid, dropout_p=self.dropout if drops else 0.0)
        y = self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))
        return (y, weights) if return_weights else y

    def _attend_by_rows(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        """Row after row and some queries at a time, so that neither padding nor a cache too small costs anything.

        Weights that are too many to keep are computed again in the backward.
        """
        sizes = lengths.tolist()
        again = self.num_heads * sum(size * size for size in sizes) > KEPT_WEIGHTS
        rows = []
        # Rows are unbound, not indexed: an index's derivative would fill a whole batch with zeros for every row.
        for size, *qkv in zip(sizes, q.unbind(), k.unbind(), v.unbind()):
            queries, keys, values = (x[:, :size] for x in qkv)
            chunks = queries.split(max(1, CHUNK_WEIGHTS // (self.num_heads * max(size, 1))), dim=1)
            mixed = [
                checkpoint(self._attend, chunk, keys, values, use_reentrant=False)
                if again
                else self._attend(chunk, keys, values)
                for chunk in chunks
            ]
            rows.append(F.pad(torch.cat(mixed, dim=1), (0, 0, 0, q.shape[2] - size)))
        return torch.stack(rows)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[heads, n, d]`` of queries ``[heads, n, d]``, all of whose keys ``[heads, T, d]`` are valid."""
        weights = torch.softmax(_scaled(q) @ k.mT, dim=-1)
        dropped = round(256 * self.dropout)
        if dropped == 256:
            return torch.zeros_like(q)
        return weights.masked_fill(_random_bytes(weights.shape) < dropped, 0) @ (v * (256 / (256 - dropped)))


def _scaled(q: Tensor) -> Tensor:
    return q * (1 / math.sqrt(q.shape[-1]))


def _random_bytes(shape: torch.Size) -> Tensor:
    """Uniform uint8 on the CPU, eight to a draw of the generator, where torch's dropout draws once an element."""
    count = math.prod(shape)
    draws = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.uint8)[:count].view(shape)

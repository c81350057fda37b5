"""Multi-head self-attention over the valid frames of a padded batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser_fast.ops import checks, onnx
from ser_fast.ops.lengths import frame_mask

KEPT_WEIGHTS = 1 << 27  # attention weights kept for the backward: 0.5 GiB in float32; more are recomputed
CHUNK_WEIGHTS = 1 << 24  # attention weights computed at once


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention: ``softmax(Q Kᵀ / √d) V`` in each head, then an output projection.

    Equations 6 and 7 of the BiGRU-MHA paper. Equivalent to ``nn.MultiheadAttention(embed_dim, num_heads, dropout,
    batch_first=True)`` with query = key = value and a padding mask; its ``in_proj_weight`` is our ``in_proj.weight``.

    Args:
        embed_dim: D, features of a frame.
        num_heads: heads; must divide ``embed_dim``.
        dropout: dropout probability of the attention weights; on CPU rounded to a multiple of 1/256. Default: 0.

    Example:
        >>> attention = MultiHeadSelfAttention(64, num_heads=4)
        >>> x, lengths = torch.randn(2, 50, 64), torch.tensor([50, 30])
        >>> y, weights = attention(x, lengths, return_weights=True)
        >>> y.shape, weights.shape
        (torch.Size([2, 50, 64]), torch.Size([2, 4, 50, 50]))
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, lengths: Tensor, return_weights: bool = False):
        """Attend from every frame to the valid frames of its row.

        Args:
            x: frames.
            lengths: valid frames of each row.
            return_weights: also return the attention weights, before dropout.

        Shape:
            - x: ``[B, T, D]``
            - lengths: ``[B]``
            - output: ``[B, T, D]``; frames past the length are not meaningful
            - weights: ``[B, num_heads, T, T]``, from each frame (row) to each frame (column)

        Returns:
            The output, or ``(output, weights)`` with ``return_weights``.
        """
        batch, frames, width = x.shape
        # An empty row attends to its padding: softmax over no frame is NaN. The pooling masks it afterwards.
        valid = (frame_mask(lengths, frames) | (lengths == 0)[:, None])[:, None, None, :]
        q, k, v = self.in_proj(x).view(batch, frames, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = None
        drops = self.training and self.dropout > 0
        # scaled_dot_product_attention has no fast CPU path with dropout, and never returns the weights.
        slow = drops and not x.is_cuda
        if slow and not return_weights and checks.readable(lengths):
            mixed = self._attend_by_rows(q, k, v, lengths)
        elif slow or return_weights:
            weights = torch.softmax((_scaled(q) @ k.mT).masked_fill(~valid, -torch.inf), dim=-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        else:
            # ONNX's Attention, of opset 23, does not broadcast the mask over the queries in onnxruntime.
            mask = valid.expand(-1, -1, frames, -1) if onnx.exporting() else valid
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if drops else 0.0)
        y = self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))
        return (y, weights) if return_weights else y

    def _attend_by_rows(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        """Attend row by row, in chunks of queries: skips the padding and keeps the weights in the cache.

        Above :data:`KEPT_WEIGHTS` the weights are recomputed in the backward.
        """
        sizes = lengths.tolist()
        recompute = self.num_heads * sum(size * size for size in sizes) > KEPT_WEIGHTS
        rows = []
        # unbind, not indexing: the derivative of an index fills a whole batch with zeros for every row.
        for size, *qkv in zip(sizes, q.unbind(), k.unbind(), v.unbind()):
            queries, keys, values = (x[:, :size] for x in qkv)
            chunks = queries.split(max(1, CHUNK_WEIGHTS // (self.num_heads * max(size, 1))), dim=1)
            mixed = [
                checkpoint(self._attend, chunk, keys, values, use_reentrant=False)
                if recompute
                else self._attend(chunk, keys, values)
                for chunk in chunks
            ]
            rows.append(F.pad(torch.cat(mixed, dim=1), (0, 0, 0, q.shape[2] - size)))
        return torch.stack(rows)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the outputs ``[heads, n, d]`` of queries ``[heads, n, d]`` over valid keys ``[heads, T, d]``."""
        weights = torch.softmax(_scaled(q) @ k.mT, dim=-1)
        dropped = round(256 * self.dropout)
        if dropped == 256:
            return torch.zeros_like(q)
        return weights.masked_fill(_random_bytes(weights.shape) < dropped, 0) @ (v * (256 / (256 - dropped)))


def _scaled(q: Tensor) -> Tensor:
    """Return ``q / √d``."""
    return q * (1 / math.sqrt(q.shape[-1]))


def _random_bytes(shape: torch.Size) -> Tensor:
    """Return uniform uint8 on the CPU, eight per 64-bit draw; torch's dropout draws once per element."""
    count = math.prod(shape)
    draws = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.uint8)[:count].view(shape)

"""Multi-head self-attention over the valid frames of a padded batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser_fast import backends
from ser_fast._require import require
from ser_fast.models.masking import masked_mean
from ser_fast.nn.packing import Part, valid_frames
from ser_fast.ops import checks, onnx
from ser_fast.ops.lengths import frame_mask
from ser_fast.ops.self_attention import self_attention

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

    def forward(self, x: Tensor, lengths: Tensor, return_weights: bool = False, mean: bool = False):
        """Attend from every frame to the valid frames of its row.

        Args:
            x: frames.
            lengths: valid frames of each row.
            return_weights: also return the attention weights, before dropout.
            mean: return the mean of the output over the valid frames, which takes less work than the output.

        Shape:
            - x: ``[B, T, D]``, or where :func:`takes_kernel` the valid frames alone, row after row, ``[N, D]``
            - lengths: ``[B]``
            - output: like x; frames past the length are not meaningful. With ``mean`` ``[B, D]``, 0 for a row
              without valid frames
            - weights: ``[B, num_heads, T, T]``, from each frame (row) to each frame (column)

        Returns:
            The output, or ``(output, weights)`` with ``return_weights``.
        """
        if not return_weights and takes_kernel(x, lengths):
            packed = x if x.dim() == 2 else valid_frames(x, lengths.tolist())
            if mean:
                return self._packed_mean(packed, lengths)
            y = self._packed(packed, lengths)
            return y if x.dim() == 2 else Part.apply(y, lengths.tolist(), x.shape[1], True)
        allowed = "[B, T, D]; packed frames are for the compiled kernel, without return_weights"
        require(x.dim() == 3, f"MultiHeadSelfAttention: x has shape {list(x.shape)}", allowed)
        y, weights = self._padded(x, lengths, return_weights)
        y = masked_mean(y, lengths) if mean else y
        return (y, weights) if return_weights else y

    def _packed(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return the output ``[N, D]`` of the valid frames ``[N, D]``."""
        mixed = self_attention(self._of_heads(self.in_proj(frames)), lengths, self._probability())
        return self.out_proj(mixed.flatten(1))

    def _packed_mean(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean of the output ``[B, D]`` from the valid frames ``[N, D]``.

        With c_s the mean over t of the weights A_ts, mean_t(Σ_s A_ts (W x_s + b)) = W Σ_s c_s x_s + b Σ_s c_s.
        So neither values nor outputs of single frames are needed.
        """
        sizes, width = lengths.tolist(), frames.shape[1]
        (w_qk, w_v), (b_qk, b_v) = (p.split([2 * width, width]) for p in (self.in_proj.weight, self.in_proj.bias))
        shares = self_attention(self._of_heads(F.linear(frames, w_qk, b_qk)), lengths, self._probability())
        rows = list(zip(shares.split(sizes, dim=1), frames.split(sizes)))
        sums = torch.stack([share @ row for share, row in rows], dim=1)  # [heads, B, D]
        totals = torch.stack([share.sum(1) for share, _ in rows], dim=1)  # [heads, B]
        values = w_v.unflatten(0, (self.num_heads, -1)), b_v.unflatten(0, (self.num_heads, -1))
        mixed = sums @ values[0].mT + totals[..., None] * values[1][:, None]  # [heads, B, d]
        return self.out_proj(mixed.transpose(0, 1).flatten(1)).masked_fill((lengths == 0)[:, None], 0)

    def _of_heads(self, projected: Tensor) -> Tensor:
        """Return ``[N, parts, heads, d]`` of projections ``[N, parts * D]``."""
        return projected.unflatten(1, (-1, self.num_heads, self.out_proj.in_features // self.num_heads))

    def _probability(self) -> float:
        return self.dropout if self.training else 0.0

    def _padded(self, x: Tensor, lengths: Tensor, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output ``[B, T, D]`` by torch's operators, and the weights if they are wanted."""
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
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width)), weights

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


def takes_kernel(x: Tensor, lengths: Tensor) -> bool:
    """Return whether the compiled kernel runs the valid frames of a batch."""
    compiled = backends.select("self_attention", x.device) == "compiled"
    return compiled and checks.readable(lengths) and not checks.transforming() and bool(lengths.any())


def _scaled(q: Tensor) -> Tensor:
    """Return ``q / √d``."""
    return q * (1 / math.sqrt(q.shape[-1]))


def _random_bytes(shape: torch.Size) -> Tensor:
    """Return uniform uint8 on the CPU, eight per 64-bit draw; torch's dropout draws once per element."""
    count = math.prod(shape)
    draws = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.uint8)[:count].view(shape)

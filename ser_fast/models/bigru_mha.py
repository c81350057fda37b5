"""BiGRU-MHA: a bidirectional GRU and multi-head self-attention on a power spectrogram.

After "Artificial Intelligence and Robotics Research" 13(2), 2024, with experiments on IEMOCAP and Emo-DB. Our
reading where the paper is silent or unclear: the update h' = z h + (1 − z) n, one projection per query, key and
value, the mean over valid frames in front of the two linear layers, and the sizes. The paper normalises the power
itself; the default here is its logarithm, which does better on Emo-DB (``log=False`` is the paper's).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ser_fast.attention_pool import AttentionPool
from ser_fast.gru import GRU
from ser_fast.models import options
from ser_fast.models.masking import frame_mask, full_lengths, masked_mean
from ser_fast.power_spectrogram import PowerSpectrogram

POOLINGS = ("mean", "attention")
KEPT_WEIGHTS = 1 << 27  # attention weights of a batch that a training step keeps: half a gigabyte in float32


class MultiHeadSelfAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in each head, over the valid frames, and an output projection (equations 6 and 7).

    Computes what ``nn.MultiheadAttention(embed_dim, num_heads)`` does on one input; ``in_proj_weight`` is
    ``in_proj.weight`` here.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        good = num_heads >= 1 and embed_dim % num_heads == 0
        options.require(good, "BiGRUMHA", "num_heads", num_heads, f"a divisor of 2 * hidden_size = {embed_dim}")
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
        # scaled_dot_product_attention forgets its fast path on CPU when it drops out, and never gives the weights.
        if return_weights:
            mixed, weights = self._attend(q, k, v, valid)
        elif self.training and self.dropout > 0:
            mixed = self._attend_in_chunks(q, k, v, valid)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
        y = self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))
        return (y, weights) if return_weights else y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(2, 3)
        weights = torch.softmax(scores.masked_fill(~valid, -torch.inf), dim=-1)
        return F.dropout(weights, self.dropout, self.training) @ v, weights

    def _attend_in_chunks(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """Attention whose weights [B, heads, T, T] would be too large to keep is computed again in the backward, some
        queries at a time: a batch of minutes then takes the memory of a batch of seconds."""
        per_query = q.shape[0] * q.shape[1] * k.shape[2]
        count = max(1, KEPT_WEIGHTS // per_query)
        if count >= q.shape[2]:
            return self._attend(q, k, v, valid)[0]

        def attend(some: Tensor) -> Tensor:
            return self._attend(some, k, v, valid)[0]

        return torch.cat([checkpoint(attend, some, use_reentrant=False) for some in q.split(count, dim=2)], dim=2)


class BiGRUMHA(nn.Module):
    """Waveforms to emotion logits by BiGRU → multi-head self-attention → pooling → two linear layers.

    Args:
        num_classes: classes.
        num_heads: heads; must divide ``2 * hidden_size``. The paper compares 4, 8, 16 and 32.
        hidden_size: units of the GRU in each direction.
        num_layers: layers of the GRU.
        reset_after: the GRU's form; the paper's is False.
        attention_dropout: of the attention weights, in 0..1.
        dropout: between the two linear layers, in 0..1.
        pooling: "mean" over the valid frames, or "attention".
        log: logarithm of the power before it is normalised.
        sample_rate: of the waveforms, in hertz.
        n_fft: size of the DFT, in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_max: highest frequency of the spectrogram, in hertz.
    """

    def __init__(
        self,
        num_classes: int,
        num_heads: int = 8,
        *,
        hidden_size: int = 128,
        num_layers: int = 1,
        reset_after: bool = False,
        attention_dropout: float = 0.2,
        dropout: float = 0.2,
        pooling: Literal["mean", "attention"] = "mean",
        log: bool = True,
        sample_rate: int = 16000,
        n_fft: int = 1600,
        win_length: int = 640,
        hop_length: int = 160,
        f_max: float = 4000.0,
    ):
        super().__init__()
        options.check("BiGRUMHA", num_classes, f_max, dropout=dropout, attention_dropout=attention_dropout)
        options.require(pooling in POOLINGS, "BiGRUMHA", "pooling", pooling, f"one of {', '.join(POOLINGS)}")
        width = 2 * hidden_size
        self.spectrogram = PowerSpectrogram(sample_rate, n_fft, win_length, hop_length, f_max=f_max, log=log)
        bins = self.spectrogram.bins[1] - self.spectrogram.bins[0]
        self.rnn = GRU(bins, hidden_size, num_layers, batch_first=True, bidirectional=True, reset_after=reset_after)
        self.attention = MultiHeadSelfAttention(width, num_heads, attention_dropout)
        self.pool = AttentionPool(width) if pooling == "attention" else None
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples from one attended frame to the next."""
        return self.spectrogram.hop_length

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Logits ``[B, classes]`` of ``wave`` ``[B, N]`` with lengths ``[B]`` in samples.

        With ``return_weights`` also the attention ``[B, heads, T, T]``, from each frame (row) to each (column).
        """
        x, lengths = self.spectrogram(wave, full_lengths(wave) if lengths is None else lengths)
        x, _ = self.rnn(x.to(self.classifier.weight.dtype), lengths=lengths)
        attended = self.attention(x, lengths, return_weights)
        x, weights = attended if return_weights else (attended, None)
        pooled = masked_mean(x, lengths) if self.pool is None else self.pool(x, lengths)
        logits = self.classifier(self.dropout(F.relu(self.hidden(pooled))))
        return (logits, weights) if return_weights else logits

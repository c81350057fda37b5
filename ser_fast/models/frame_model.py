"""What the systems of the BiGRU-MHA paper share, from the spectrogram to the logits, around an encoder of frames."""

import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.models import options
from ser_fast.models.masking import full_lengths, masked_mean
from ser_fast.models.self_attention import MultiHeadSelfAttention
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.power_spectrogram import PowerSpectrogram

POOLINGS = ("mean", "attention")


class FrameModel(nn.Module):
    """Waveforms to logits: spectrogram → encoder → self-attention → pooling → two linear layers.

    A subclass says in :meth:`encode` what goes through ``rnn``.

    Args:
        num_classes: classes, or 1 for a regression.
        spectrogram: waveforms ``[B, N]`` and lengths to frames ``[B, T, F]`` and lengths.
        rnn: the encoder's layer over frames, whatever :meth:`encode` runs.
        width: features of an encoded frame.
        num_heads: of the self-attention, which must divide ``width``; 0 leaves it out.
        attention_dropout: of the attention weights, in 0..1.
        dropout: between the two linear layers, in 0..1.
        pooling: "mean" over the valid frames, or "attention".
    """

    corpus_statistics = True  # training normalises the spectrogram by its part of the corpus

    def __init__(
        self,
        num_classes: int,
        spectrogram: PowerSpectrogram,
        rnn: nn.Module,
        width: int,
        *,
        num_heads: int,
        attention_dropout: float,
        dropout: float,
        pooling: str,
    ):
        super().__init__()
        options.require(pooling in POOLINGS, type(self).__name__, "pooling", pooling, f"one of {', '.join(POOLINGS)}")
        self.spectrogram = spectrogram
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        self.rnn = rnn
        self.attention = MultiHeadSelfAttention(width, num_heads, attention_dropout) if num_heads else None
        self.pool = AttentionPool(width) if pooling == "attention" else None
        self.hidden = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples from one attended frame to the next."""
        return self.spectrogram.hop_length

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded frames ``[B, T', width]`` and their lengths, of frames ``[B, T, F]``, which are 0 past theirs."""
        raise NotImplementedError

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Logits ``[B, classes]`` of ``wave`` ``[B, N]`` with lengths ``[B]`` in samples.

        With ``return_weights`` also the attention: ``[B, heads, T, T]``, from each frame (row) to each (column); the
        pooling's ``[B, T]`` without heads; None without either.
        """
        x, lengths = self.spectrogram(wave, full_lengths(wave) if lengths is None else lengths)
        if self.spec_augment is not None:
            x = self.spec_augment(x, lengths)
        x, lengths = self.encode(x.to(self.classifier.weight.dtype), lengths)
        weights = None
        if self.attention is not None:
            attended = self.attention(x, lengths, return_weights)
            x, weights = attended if return_weights else (attended, None)
        if self.pool is None:
            pooled = masked_mean(x, lengths)
        else:
            pooled, shares = self.pool(x, lengths, return_weights=True)
            weights = shares if self.attention is None else weights
        logits = self.classifier(self.dropout(F.relu(self.hidden(pooled))))
        return (logits, weights) if return_weights else logits

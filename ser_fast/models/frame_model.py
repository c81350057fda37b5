"""Base class of the BiGRU-MHA paper's systems, which differ in their frame encoder."""

import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models.masking import masked_mean, sample_lengths
from ser_fast.models.peers import packed
from ser_fast.models.self_attention import MultiHeadSelfAttention, takes_kernel
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.frame_input import FrameInput
from ser_fast.nn.gru import GRU
from ser_fast.nn.packing import Part, valid_frames
from ser_fast.nn.power_spectrogram import PowerSpectrogram

POOLINGS = ("mean", "attention")


class FrameModel(nn.Module):
    """Base class: spectrogram → :meth:`encode` → self-attention → pooling → linear → ReLU → dropout → linear.

    A subclass implements :meth:`encode`, which runs ``rnn``. See :class:`BiGRUMHA` and :class:`Baseline`.

    Args:
        num_classes: number of classes, or 1 for regression.
        spectrogram: module from waveforms ``[B, N]`` and lengths to frames ``[B, T, F]`` and lengths in frames; or
            :class:`ser_fast.nn.frame_input.FrameInput`, with which the model takes features ``[B, T, F]``.
        rnn: layer over frames, used by :meth:`encode`.
        width: features of an encoded frame.
        num_heads: heads of the self-attention; must divide ``width``. 0 omits the self-attention.
        attention_dropout: dropout probability of the attention weights.
        dropout: dropout probability between the two linear layers.
        pooling: "mean" over the valid frames, or "attention".

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; see :meth:`forward`.

    Raises:
        ValueError: if ``pooling`` is unknown.

    Example:
        >>> import torch
        >>> from ser_fast import PowerSpectrogram
        >>> class LinearFrames(FrameModel):
        ...     def encode(self, x, lengths):
        ...         return self.rnn(x), lengths
        >>> spectrogram = PowerSpectrogram(16000, 512, win_length=400, hop_length=160)
        >>> model = LinearFrames(4, spectrogram, rnn=nn.Linear(129, 32), width=32, num_heads=0,
        ...                      attention_dropout=0.0, dropout=0.0, pooling="mean")
        >>> model(torch.randn(2, 16000)).shape
        torch.Size([2, 4])
    """

    corpus_statistics = True  # training normalises the spectrogram by mean and deviation of the training set

    def __init__(
        self,
        num_classes: int,
        spectrogram: PowerSpectrogram | FrameInput,
        *,
        rnn: nn.Module,
        width: int,
        num_heads: int,
        attention_dropout: float,
        dropout: float,
        pooling: str,
    ):
        super().__init__()
        require(
            pooling in POOLINGS, f"{type(self).__name__}: pooling is {pooling!r}", f"one of {', '.join(POOLINGS)}"
        )
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
        """Samples between two frames of the returned attention weights."""
        return self.spectrogram.hop_length

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode frames; implemented by subclasses.

        Args:
            x: spectrogram ``[B, T, F]``, 0 past each length.
            lengths: valid frames of each row ``[B]``.

        Returns:
            Encoded frames ``[B, T', width]`` and their lengths ``[B]``. Without a change of T also the valid frames
            alone, row after row, ``[N, width]``.
        """
        raise NotImplementedError

    def recur(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs of ``rnn``, a GRU; of the valid frames alone where the self-attention takes them so."""
        if isinstance(self.rnn, nn.RNNBase):  # torch's, after ser_fast.to_torch
            return packed(self.rnn, x, lengths.clamp(min=1))
        if self.attention is not None and takes_kernel(x, lengths) and isinstance(self.rnn, GRU):
            x = valid_frames(x, lengths.tolist())
        return self.rnn(x, lengths=lengths)[0]

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Return the logits of a padded batch, and on request the attention weights.

        In evaluation mode a row's logits do not depend on its padding or on the other rows.

        Args:
            wave: waveforms at the spectrogram's sample rate, or features of frames.
            lengths: samples, or frames, of each row, in 0..N; by default N in every row.
            return_weights: also return the attention weights.

        Shape:
            - wave: ``[B, N]``, or features ``[B, T, F]``
            - lengths: ``[B]``, int64 or int32
            - logits: ``[B, num_classes]``
            - weights: ``[B, num_heads, T', T']``; ``[B, T']`` if only the pooling attends

        Returns:
            Logits, or ``(logits, weights)`` with ``return_weights``. ``weights[b, h, i, j]`` is the weight of frame
            j in the output of frame i; frames are :attr:`weights_hop` samples apart. Without self-attention they
            are those of attention pooling, and None if there is neither.

        Raises:
            RuntimeError: if ``wave`` or ``lengths`` has an invalid shape, dtype, device or value.
        """
        shape = "[B, T, F]" if isinstance(self.spectrogram, FrameInput) else "[B, N]"
        x, lengths = self.spectrogram(wave, sample_lengths(type(self).__name__, wave, lengths, shape))
        if self.spec_augment is not None:
            x = self.spec_augment(x, lengths)
        frames = x.shape[1]
        x, lengths = self.encode(x.to(self.classifier.weight.dtype), lengths)
        weights = None
        if self.attention is None or return_weights:
            x = _padded(x, lengths, frames)
        if self.attention is not None:
            attended = self.attention(x, lengths, return_weights, mean=self.pool is None)
            x, weights = attended if return_weights else (attended, None)
        if self.pool is None:
            pooled = masked_mean(x, lengths) if self.attention is None else x
        else:
            pooled, shares = self.pool(_padded(x, lengths, frames), lengths, return_weights=True)
            weights = shares if self.attention is None else weights
        logits = self.classifier(self.dropout(F.relu(self.hidden(pooled))))
        return (logits, weights) if return_weights else logits


def _padded(x: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Return packed frames ``[N, W]`` as ``[B, frames, W]``, 0 past each length; padded ones as they are."""
    return x if x.dim() == 3 else Part.apply(x, lengths.tolist(), frames, True)

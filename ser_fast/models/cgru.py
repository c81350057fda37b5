"""CGRU: convolution, GRU and frame attention on a gray spectrogram."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models import options
from ser_fast.models.convolution import ConvPool
from ser_fast.models.masking import sample_lengths
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.nn.packing import Part
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops import checks
from ser_fast.ops.gray_deltas import gray, gray_deltas, standardize

DYNAMIC_RANGE = 80 * math.log(10) / 10  # 80 dB as a difference of natural logarithms of power
CELLS = ("gru", "lstm")


class CGRU(nn.Module):
    """Waveforms to emotion logits: gray spectrogram → 2 convolutions → GRU → attention pooling → linear.

    The attention-CGRU model of *Computer Systems & Applications* 32(1), 2023, evaluated there on CASIA (4 speakers,
    6 emotions). The paper gives the order of the layers, the filters and these equations: the GRU with input X_t and
    state H_t (equations 1-4, ``reset_after=False``), and the attention over its outputs y_t with a learned vector w
    (equation 5)::

        R_t = σ(X_t W_xr + H_{t-1} W_hr + b_r)
        Z_t = σ(X_t W_xz + H_{t-1} W_hz + b_z)
        H̃_t = tanh(X_t W_xh + (R_t · H_{t-1}) W_hh + b_h)
        H_t = Z_t · H_{t-1} + (1 - Z_t) · H̃_t
        α_t = exp(wᵀ y_t) / Σ_s exp(wᵀ y_s);  pooled = Σ_t α_t y_t

    The first convolution is 3-D with a filter of 3 × 5 × 2 (frequency, time, channel), followed by max-pooling that
    reduces the channel axis from 3 to 1; the second has a filter of 3 × 5, followed by max-pooling.

    Our reading, where the paper is silent:

    - The gray image is the log power, scaled to 0..1 over the 80 dB below the utterance's peak, then standardised
      over the utterance; without the standardisation it hardly trained.
    - The three input channels are this image, its delta and its delta-delta.
    - Channel counts, hidden size, "same" padding, ReLU, 2 × 2 pooling in frequency and time, dropout, and the
      spectrogram's sizes with its limit of 4 kHz.

    Args:
        num_classes: number of classes, or 1 for regression.
        channels: output channels of the two convolutions. Default: (16, 32).
        hidden_size: hidden units of the GRU. Default: 128.
        convolution: False omits the convolutions: the GRU reads the frames of the gray image. Default: True.
        attention: False omits the pooling: the last state is classified. Default: True.
        cell: "gru", or "lstm" (``nn.LSTM``) for comparison. Default: "gru".
        reset_after: form of the GRU; see :class:`GRU`. Default: False, the paper's.
        dropout: dropout probability before the last layer, in 0..1, 1 excluded. Default: 0.3.
        sample_rate: sample rate of the waveforms, in hertz. Default: 16000.
        n_fft: DFT length, in samples. Default: 512.
        win_length: window length, in samples. Default: 400.
        hop_length: step between frames, in samples. Default: 160.
        f_max: highest frequency of the spectrogram, in hertz. Default: 4000.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; weights ``[B, T']``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import ser_fast
        >>> model = ser_fast.CGRU(num_classes=6).eval()
        >>> wave, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])  # 1 s and 0.75 s
        >>> model(wave, lengths).shape
        torch.Size([2, 6])
        >>> logits, weights = model(wave, lengths, return_weights=True)
        >>> weights.shape  # one weight for 40 ms
        torch.Size([2, 25])
    """

    corpus_statistics = False  # each gray image is standardised over its own utterance

    def __init__(
        self,
        num_classes: int,
        *,
        channels: tuple[int, int] = (16, 32),
        hidden_size: int = 128,
        convolution: bool = True,
        attention: bool = True,
        cell: Literal["gru", "lstm"] = "gru",
        reset_after: bool = False,
        dropout: float = 0.3,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        f_max: float = 4000.0,
    ):
        super().__init__()
        options.check("CGRU", num_classes, f_max, dropout=dropout)
        require(cell in CELLS, f"CGRU: cell is {cell!r}", f"one of {', '.join(CELLS)}")
        good = len(channels) == 2 and min(channels) >= 1
        require(good, f"CGRU: channels is {channels!r}", "two numbers of at least 1")
        self.spectrogram = PowerSpectrogram(
            sample_rate, n_fft, win_length=win_length, hop_length=hop_length, f_max=f_max, log=True
        )
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        width = self.spectrogram.bins[1] - self.spectrogram.bins[0]
        self.conv1 = self.conv2 = None
        if convolution:
            self.conv1 = ChannelPairConv(channels[0])
            self.conv2 = ConvPool(channels[0], channels[1], (5, 3))
            width = channels[1] * math.ceil(width / 4)
        if cell == "gru":
            self.rnn = GRU(width, hidden_size, batch_first=True, reset_after=reset_after)
        else:
            self.rnn = nn.LSTM(width, hidden_size, batch_first=True)
        self.pool = AttentionPool(hidden_size) if attention else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples between two attention weights; 4 hops after the convolutions' two poolings."""
        return self.spectrogram.hop_length * (1 if self.conv1 is None else 4)

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Return the logits of a padded batch, and on request the attention weights.

        In evaluation mode a row's logits do not depend on its padding or on the other rows.

        Args:
            wave: waveforms at ``sample_rate``.
            lengths: samples of each row, in 0..N; by default N in every row.
            return_weights: also return the attention weights.

        Shape:
            - wave: ``[B, N]``
            - lengths: ``[B]``, int64 or int32
            - logits: ``[B, num_classes]``
            - weights: ``[B, T']``, one for each :attr:`weights_hop` samples

        Returns:
            Logits, or ``(logits, weights)`` with ``return_weights``. The weights of a row sum to 1 over its valid
            frames; they are None with ``attention=False``.

        Raises:
            RuntimeError: if ``wave`` or ``lengths`` has an invalid shape, dtype, device or value.
        """
        x, lengths = self.spectrogram(wave, sample_lengths(type(self).__name__, wave, lengths))
        if self.spec_augment is not None:
            x = self.spec_augment(x, lengths)
        dtype = self.classifier.weight.dtype
        if self.conv1 is None:
            x = standardize(gray(x, DYNAMIC_RANGE, lengths), lengths).to(dtype)
            y, last = self._recur(x, lengths)
        else:
            y, last = self._convolve_and_recur(x, lengths, dtype)
            lengths = (lengths + 3) // 4
        if self.pool is None:
            return self._classify(last, None, return_weights)
        return self._classify(*self.pool(y, lengths, return_weights=True), return_weights)

    def _convolve_and_recur(self, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the recurrence over a quarter of the frames of the log power ``[B, T, F]``, as :meth:`_recur` does.

        Where lengths can be read, only valid frames are kept, one row after the other.
        """
        halves, quarters, frames = (lengths + 1) // 2, (lengths + 3) // 4, (x.shape[1] + 3) // 4
        packed = checks.readable(lengths) and not checks.transforming() and bool(lengths.any())
        x = gray_deltas(x, DYNAMIC_RANGE, lengths, packed=packed).to(dtype)
        x = self.conv2(self.conv1(x, lengths), halves, channels_last=False).flatten(-2)
        if not packed:
            return self._recur(x, quarters)
        if not isinstance(self.rnn, GRU):
            return self._recur(Part.apply(x, quarters.tolist(), frames, True), quarters)
        y, h_n = self.rnn(x, lengths=quarters)
        return Part.apply(y, quarters.tolist(), frames, True), h_n[0]

    def _recur(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs ``[B, T, H]`` and the state at each row's last frame ``[B, H]``."""
        if isinstance(self.rnn, GRU):
            y, h_n = self.rnn(x, lengths=lengths)
            return y, h_n[0]
        # A forward-only LSTM needs no packing: padding comes after the valid frames.
        y, _ = self.rnn(x)
        return y, y[torch.arange(len(y), device=y.device), (lengths - 1).clamp(min=0)]

    def _classify(self, features: Tensor, weights: Tensor | None, return_weights: bool):
        logits = self.classifier(self.dropout(features))
        return (logits, weights) if return_weights else logits


class ChannelPairConv(nn.Module):
    """First convolution of CGRU: ``Conv3d(1, C, (3, 5, 2))`` over frequency, time, channel; then its maxima and ReLU.

    The filter has two positions along the three channels; the maximum over both closes that axis and is taken with
    that over 2 × 2 pixels. ``conv.weight[c, k, t, f]`` equals ``Conv3d.weight[c, 0, f, t, k]``.

    Args:
        channels: C, output channels.

    Shape:
        x ``[B, T, F, 3]`` or packed ``[N, F, 3]``, lengths ``[B]``; output ``[B, ceil(T / 2), ceil(F / 2), C]`` or
        packed.

    Example:
        >>> ChannelPairConv(16)(torch.randn(2, 100, 129, 3)).shape
        torch.Size([2, 50, 65, 16])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = ConvPool(2, channels, (5, 3))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the maxima over both filter positions and 2 × 2 pixels."""
        return self.conv(x, lengths)

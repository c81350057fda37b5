"""CGRU: convolution, GRU and frame attention on a gray spectrogram, after the attention-CGRU paper.

Computer Systems & Applications 32(1), 2023, with experiments on CASIA. The paper gives the order of the layers,
the filters, the GRU's and the attention's equations; what it leaves open is our reading and says so here:

- the gray image is the log power scaled to 0..1 over the 80 dB below the utterance's peak, and then standardised
  over the utterance: left at 0..1 it hardly trained;
- the three input channels are that image, its delta and its delta-delta;
- channel counts, hidden size, padding ("same"), ReLU and the 4 kHz crop.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ser_fast.models import options
from ser_fast.models.convolution import halve, quarter
from ser_fast.models.masking import frame_mask, full_lengths, standardize
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.nn.power_spectrogram import PowerSpectrogram

DYNAMIC_RANGE = 80 * math.log(10) / 10  # 80 dB in natural logarithm of power
CELLS = ("gru", "lstm")


class CGRU(nn.Module):
    """Waveforms to emotion logits by conv → conv → GRU → attention pooling → linear.

    Args:
        num_classes: classes, or 1 for a regression.
        channels: output channels of the two convolutions.
        hidden_size: of the GRU.
        convolution: without it the GRU reads the frames of the gray image itself.
        attention: pool the frames by attention; without it the last state is classified.
        cell: "gru", or "lstm" for the comparison.
        reset_after: the GRU's form; the paper's is False.
        dropout: before the last layer, in 0..1.
        sample_rate: of the waveforms, in hertz.
        n_fft: size of the DFT, in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_max: highest frequency of the spectrogram, in hertz.
    """

    corpus_statistics = False  # every gray image is standardised by itself

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
        options.require(cell in CELLS, "CGRU", "cell", cell, f"one of {', '.join(CELLS)}")
        good = len(channels) == 2 and min(channels) >= 1
        options.require(good, "CGRU", "channels", channels, "two numbers of at least 1")
        self.spectrogram = PowerSpectrogram(sample_rate, n_fft, win_length, hop_length, f_max=f_max, log=True)
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        width = self.spectrogram.bins[1] - self.spectrogram.bins[0]
        self.conv1 = self.conv2 = None
        if convolution:
            self.conv1 = ChannelPairConv(channels[0])
            self.conv2 = nn.Conv2d(channels[0], channels[1], (5, 3), padding=(2, 1))
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
        """Samples from one attention weight to the next; the convolutions' poolings halve the frame rate twice."""
        return self.spectrogram.hop_length * (1 if self.conv1 is None else 4)

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Logits ``[B, classes]`` of ``wave`` ``[B, N]`` with lengths ``[B]`` in samples.

        With ``return_weights`` also the attention ``[B, T]`` over frames of :attr:`weights_hop` samples; None
        without attention.
        """
        x, lengths = self.spectrogram(wave, full_lengths(wave) if lengths is None else lengths)
        if self.spec_augment is not None:
            x = self.spec_augment(x, lengths)
        if self.conv1 is None:
            x = standardize(_gray(x, lengths), lengths).to(self.classifier.weight.dtype)
        else:
            x, lengths = quarter(self._convolve, x, lengths)
        y, last = self._recur(x, lengths)
        if self.pool is None:
            return self._classify(last, None, return_weights)
        return self._classify(*self.pool(y, lengths, return_weights=True), return_weights)

    def _convolve(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Log power [B, T, F] to features of a quarter of the frames [B, T / 4, C F / 4]."""
        image = _channels(standardize(_gray(x, lengths), lengths), lengths).to(self.classifier.weight.dtype)
        # The maximum over the channel axis comes last, on a quarter of the pixels: maxima may be taken in any order.
        x = torch.maximum(*halve(self.conv1.positions(image), lengths.repeat(2)).unflatten(0, (2, -1)))
        x = halve(self.conv2(x), (lengths + 1) // 2)
        return x.transpose(1, 2).flatten(2)  # [B, C, T, F] -> [B, T, C F]

    def _recur(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [B, T, H] and the state at each row's last frame [B, H]."""
        if isinstance(self.rnn, GRU):
            y, h_n = self.rnn(x, lengths=lengths)
            return y, h_n[0]
        # It runs forwards only, so padding behind a row's end changes nothing before it and packing is not needed.
        y, _ = self.rnn(x)
        return y, y[torch.arange(len(y), device=y.device), (lengths - 1).clamp(min=0)]

    def _classify(self, features: Tensor, weights: Tensor | None, return_weights: bool):
        logits = self.classifier(self.dropout(features))
        return (logits, weights) if return_weights else logits


class ChannelPairConv(nn.Module):
    """The paper's first layer: Conv3d(1, C, (3 frequency, 5 time, 2 channel)) on three channels, then the maximum
    over the two positions that the filter finds along the channel axis.

    It is computed as one 2-D convolution of the two channel pairs, stacked along the batch: the same sums, four
    times faster on CPU. ``conv.weight[c, k, t, f]`` is ``Conv3d.weight[c, 0, f, t, k]``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(2, channels, (5, 3), padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, T, F]`` to ``[B, C, T, F]``."""
        return torch.maximum(*self.positions(x).unflatten(0, (2, -1)))

    def positions(self, x: Tensor) -> Tensor:
        """``[B, 3, T, F]`` to both positions ``[2 B, C, T, F]``."""
        return self.conv(torch.cat([x[:, :2], x[:, 1:]]).contiguous(memory_format=torch.channels_last))


def _gray(log_power: Tensor, lengths: Tensor) -> Tensor:
    """Log power [B, T, F] as gray levels: 1 at the utterance's peak, 0 from 80 dB below it and past its end."""
    valid = frame_mask(lengths, log_power.shape[1])[..., None]
    peak = log_power.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
    return ((log_power - peak) / DYNAMIC_RANGE + 1).clamp(0, 1).masked_fill(~valid, 0)


def _channels(gray: Tensor, lengths: Tensor) -> Tensor:
    """The image [B, T, F], its delta and its delta-delta, [B, 3, T, F], zero past each length."""
    delta = _delta(gray, lengths)
    return torch.stack([gray, delta, _delta(delta, lengths)], dim=1)


def _delta(x: Tensor, lengths: Tensor) -> Tensor:
    """The usual regression slope over two frames to either side; the first and last frames go on beyond the ends."""
    batch, frames, _ = x.shape
    valid = frame_mask(lengths, frames)[..., None]
    last = x[torch.arange(batch, device=x.device), (lengths - 1).clamp(min=0)][:, None]
    x = torch.where(valid, x, last)
    padded = torch.cat([x[:, :1], x[:, :1], x, last, last], dim=1)
    slope = 2 * (padded[:, 4:] - padded[:, :-4]) + padded[:, 3:-1] - padded[:, 1:-3]
    return (slope / 10).masked_fill(~valid, 0)

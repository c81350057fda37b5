"""What the BiGRU-MHA paper compares itself with: other encoders, with and without self-attention.

The paper names the systems of its table 6 and no more. Our reading: all share BiGRU-MHA's spectrogram, pooling and
linear layers, and their encoded frames are as wide as its own, ``2 * hidden_size``. The encoders:

- "bigru" is BiGRU-MHA's bidirectional GRU;
- "lstm" and "rnn" are torch's, of one layer that runs forwards, the latter with tanh;
- "cnn" and "cnn_lstm" begin with convolutions of 16 filters of 5×5 and 32 of 3×3, each followed by 2×2 max-pooling
  and ReLU, whose frames the LSTM reads, or a linear layer in "cnn";
- "linear" is a linear layer on each frame, for self-attention alone, which gets no positions.
"""

import math
from typing import Literal

from torch import Tensor, nn

from ser_fast.models import options
from ser_fast.models.convolution import halve, quarter
from ser_fast.models.frame_model import FrameModel
from ser_fast.nn.gru import GRU
from ser_fast.nn.power_spectrogram import PowerSpectrogram

ENCODERS = ("cnn", "lstm", "rnn", "cnn_lstm", "bigru", "linear")
CHANNELS = (16, 32)


class Baseline(FrameModel):
    """Waveforms to logits by an encoder of frames → self-attention → pooling → two linear layers.

    Args:
        num_classes: classes, or 1 for a regression.
        encoder: "cnn", "lstm", "rnn", "cnn_lstm", "bigru" or "linear".
        num_heads: heads of the self-attention, which must divide ``2 * hidden_size``; 0 leaves it out.
        hidden_size: half of an encoded frame's features.
        attention_dropout: of the attention weights, in 0..1; on CPU the nearest multiple of 1/256.
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
        *,
        encoder: Literal["cnn", "lstm", "rnn", "cnn_lstm", "bigru", "linear"] = "bigru",
        num_heads: int = 0,
        hidden_size: int = 128,
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
        options.check("Baseline", num_classes, f_max, dropout=dropout, attention_dropout=attention_dropout)
        options.require(encoder in ENCODERS, "Baseline", "encoder", encoder, f"one of {', '.join(ENCODERS)}")
        options.require(hidden_size >= 1, "Baseline", "hidden_size", hidden_size, "at least 1")
        width = 2 * hidden_size
        if num_heads:
            options.check_heads("Baseline", num_heads, width)
        spectrogram = PowerSpectrogram(
            sample_rate, n_fft, win_length=win_length, hop_length=hop_length, f_max=f_max, log=log
        )
        bins = spectrogram.bins[1] - spectrogram.bins[0]
        convolves = encoder.startswith("cnn")
        features = CHANNELS[1] * math.ceil(bins / 4) if convolves else bins
        super().__init__(
            num_classes, spectrogram, _layer(encoder, features, width), width, num_heads=num_heads,
            attention_dropout=attention_dropout, dropout=dropout, pooling=pooling,
        )  # fmt: skip
        self.conv1 = nn.Conv2d(1, CHANNELS[0], 5, padding=2) if convolves else None
        self.conv2 = nn.Conv2d(*CHANNELS, 3, padding=1) if convolves else None

    @property
    def weights_hop(self) -> int:
        """Samples from one attended frame to the next; the convolutions' poolings halve the frame rate twice."""
        return self.spectrogram.hop_length * (1 if self.conv1 is None else 4)

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.conv1 is not None:
            x, lengths = quarter(self._convolve, x, lengths)
        if isinstance(self.rnn, nn.Linear):
            return self.rnn(x), lengths
        # torch's run forwards only, so padding behind a row's end changes nothing before it.
        x, _ = self.rnn(x, lengths=lengths) if isinstance(self.rnn, GRU) else self.rnn(x)
        return x, lengths

    def _convolve(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames [B, T, F] to [B, T / 4, C F / 4]."""
        x = halve(self.conv1(x[:, None]), lengths)
        x = halve(self.conv2(x), (lengths + 1) // 2)
        return x.transpose(1, 2).flatten(2)


def _layer(encoder: str, features: int, width: int) -> nn.Module:
    if encoder == "bigru":
        return GRU(features, width // 2, batch_first=True, bidirectional=True, reset_after=False)
    if encoder in ("lstm", "cnn_lstm"):
        return nn.LSTM(features, width, batch_first=True)
    if encoder == "rnn":
        return nn.RNN(features, width, batch_first=True)
    return nn.Linear(features, width)

"""Baselines of the BiGRU-MHA paper: other frame encoders, with and without self-attention."""

import math
from typing import Literal

from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models import options
from ser_fast.models.convolution import halve, quarter
from ser_fast.models.frame_model import FrameModel
from ser_fast.nn.gru import GRU

ENCODERS = ("cnn", "lstm", "rnn", "cnn_lstm", "bigru", "linear")
CHANNELS = (16, 32)


class Baseline(FrameModel):
    """Waveforms to logits: power spectrogram → encoder → optional self-attention → pooling → 2 linear layers.

    The systems that the BiGRU-MHA paper (*Artificial Intelligence and Robotics Research* 13(2), 2024) compares itself
    with in table 6. The paper gives their names only. Our reading: all share the spectrogram, pooling and linear
    layers of :class:`BiGRUMHA`, and their encoded frames have its width, ``2 * hidden_size``. The encoders are:

    - "bigru": the bidirectional GRU of :class:`BiGRUMHA`, one layer;
    - "lstm", "rnn": one forward layer of ``nn.LSTM``, or of ``nn.RNN`` with tanh;
    - "cnn": two convolutions (16 filters of 5 × 5, then 32 of 3 × 3), each followed by 2 × 2 max-pooling and ReLU,
      then a linear layer on each frame;
    - "cnn_lstm": the same convolutions, then the LSTM;
    - "linear": a linear layer on each frame, for self-attention alone; there is no positional encoding.

    Args:
        num_classes: number of classes, or 1 for regression.
        encoder: "cnn", "lstm", "rnn", "cnn_lstm", "bigru" or "linear". Default: "bigru".
        num_heads: heads of the self-attention; must divide ``2 * hidden_size``. Default: 0, no self-attention.
        hidden_size: half of an encoded frame's features. Default: 128.
        attention_dropout: dropout probability of the attention weights, in 0..1, 1 excluded; on CPU rounded to a
            multiple of 1/256. Default: 0.2.
        dropout: dropout probability between the two linear layers, in 0..1, 1 excluded. Default: 0.2.
        pooling: "mean" over the valid frames, or "attention". Default: "mean".
        log: take the logarithm of the power before it is normalised. Default: True.
        sample_rate: sample rate of the waveforms, in hertz. Default: 16000.
        n_fft: DFT length, in samples. Default: 1600.
        win_length: window length, in samples. Default: 640.
        hop_length: step between frames, in samples. Default: 160.
        f_max: highest frequency of the spectrogram, in hertz. Default: 4000.
        features: width of the features that the model takes in the spectrogram's place, such as those of a pretrained
            encoder; ``ser-fast train --features`` sets it. Default: 0, waveforms.
        frame_rate: frames of the features in a second. Default: 50.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples, or ``[B, T, features]`` and frames;
        logits ``[B, num_classes]``; weights
        ``[B, num_heads, T', T']``, ``[B, T']`` if only the pooling attends.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch
        >>> from ser_fast.models import Baseline
        >>> model = Baseline(7, encoder="cnn_lstm").eval()
        >>> model(torch.randn(2, 16000), torch.tensor([16000, 12000])).shape
        torch.Size([2, 7])
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
        features: int = 0,
        frame_rate: float = 50.0,
    ):
        options.check("Baseline", num_classes, f_max, dropout=dropout, attention_dropout=attention_dropout)
        require(encoder in ENCODERS, f"Baseline: encoder is {encoder!r}", f"one of {', '.join(ENCODERS)}")
        require(hidden_size >= 1, f"Baseline: hidden_size is {hidden_size!r}", "at least 1")
        width = 2 * hidden_size
        if num_heads:
            options.check_heads("Baseline", num_heads, width)
        spectrogram = options.front_end(
            "Baseline", features, frame_rate, sample_rate, n_fft, win_length=win_length, hop_length=hop_length,
            f_max=f_max, log=log,
        )  # fmt: skip
        bins = len(spectrogram.mean)
        convolves = encoder.startswith("cnn")
        encoded = CHANNELS[1] * math.ceil(bins / 4) if convolves else bins
        super().__init__(
            num_classes, spectrogram, rnn=_layer(encoder, encoded, width), width=width, num_heads=num_heads,
            attention_dropout=attention_dropout, dropout=dropout, pooling=pooling,
        )  # fmt: skip
        self.conv1 = nn.Conv2d(1, CHANNELS[0], 5, padding=2) if convolves else None
        self.conv2 = nn.Conv2d(*CHANNELS, 3, padding=1) if convolves else None

    @property
    def weights_hop(self) -> int:
        """Samples between two frames of the attention weights; 4 hops after the convolutions' two poolings."""
        return self.spectrogram.hop_length * (1 if self.conv1 is None else 4)

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoded frames ``[B, T', 2 * hidden_size]`` and their lengths; convolutions divide T by 4."""
        if self.conv1 is not None:
            x, lengths = quarter(self._convolve, x, lengths)
        if isinstance(self.rnn, nn.Linear):
            return self.rnn(x), lengths
        # Forward-only layers need no packing: padding comes after the valid frames.
        return self.recur(x, lengths) if isinstance(self.rnn, GRU) else self.rnn(x)[0], lengths

    def _convolve(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return features ``[B, ceil(T / 4), C ceil(F / 4)]`` of the frames ``[B, T, F]``."""
        x = halve(self.conv1(x[:, None]), lengths)
        x = halve(self.conv2(x), (lengths + 1) // 2)
        return x.transpose(1, 2).flatten(2)


def _layer(encoder: str, features: int, width: int) -> nn.Module:
    """Return the encoder's layer over frames of ``features``, with ``width`` outputs."""
    if encoder == "bigru":
        return GRU(features, width // 2, batch_first=True, bidirectional=True, reset_after=False)
    if encoder in ("lstm", "cnn_lstm"):
        return nn.LSTM(features, width, batch_first=True)
    if encoder == "rnn":
        return nn.RNN(features, width, batch_first=True)
    return nn.Linear(features, width)

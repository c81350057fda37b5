"""CRNN: our own recipe's model, small enough to be trained from nothing on half an hour of speech.

A log-mel spectrogram, standardised over each utterance, goes through three convolutions with batch normalisation, a
bidirectional GRU and a pooling over the frames, as in many recognisers of emotions since 3-D ACRNN (Chen et al.,
IEEE Signal Processing Letters 25(10), 2018).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.gru_module import GRU
from ser_fast.mel import MelSpectrogram
from ser_fast.models import options
from ser_fast.models.convolution import halve
from ser_fast.models.frame_model import FrameModel
from ser_fast.models.masking import frame_mask, standardize

FLOOR = 1e-8  # of a mel's power, some 90 dB below a loud voice


class CRNN(FrameModel):
    """Waveforms to logits by log-mels → three convolutions → BiGRU → pooling → two linear layers.

    The convolutions, of 5×5, 3×3 and 3×3, quarter the frames and leave an eighth of the mels. In training the batch
    normalisation counts padding as zeros; batches of neighbours in length have little of it.

    Args:
        num_classes: classes, or 1 for a regression.
        channels: output channels of the three convolutions.
        hidden_size: units of the GRU in each direction.
        reset_after: the GRU's form; True is torch's.
        dropout: in front of the GRU and between the two linear layers, in 0..1.
        pooling: "mean" over the valid frames, or "attention".
        n_mels: bands of the mel spectrogram.
        sample_rate: of the waveforms, in hertz.
        n_fft: size of the DFT, in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_min: where the lowest band begins, in hertz.
        f_max: where the highest band ends, in hertz.
    """

    corpus_statistics = False  # every utterance is standardised over itself

    def __init__(
        self,
        num_classes: int,
        *,
        channels: tuple[int, int, int] = (16, 32, 64),
        hidden_size: int = 64,
        reset_after: bool = True,
        dropout: float = 0.3,
        pooling: Literal["mean", "attention"] = "attention",
        n_mels: int = 64,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 320,
        f_min: float = 50.0,
        f_max: float = 8000.0,
    ):
        options.check("CRNN", num_classes, f_max, dropout=dropout)
        good = len(channels) == 3 and min(channels) >= 1
        options.require(good, "CRNN", "channels", channels, "three numbers of at least 1")
        options.require(n_mels >= 8, "CRNN", "n_mels", n_mels, "at least 8")
        bins = n_mels
        for _ in channels:
            bins = (bins + 1) // 2
        rnn = GRU(channels[2] * bins, hidden_size, batch_first=True, bidirectional=True, reset_after=reset_after)
        front = MelSpectrogram(
            sample_rate, n_fft, win_length, hop_length, f_min, f_max, n_mels, center=False, floor=FLOOR
        )
        super().__init__(
            num_classes, front, rnn, 2 * hidden_size, num_heads=0, attention_dropout=0.0, dropout=dropout,
            pooling=pooling,
        )  # fmt: skip
        self.conv1 = nn.Conv2d(1, channels[0], 5, stride=2, padding=2, bias=False)
        self.conv2 = nn.Conv2d(*channels[:2], 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(*channels[1:], 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in channels)
        self.input_dropout = nn.Dropout(dropout)

    @property
    def weights_hop(self) -> int:
        """Samples from one attention weight to the next."""
        return 4 * self.spectrogram.hop_length

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = standardize(x, lengths)[:, None].contiguous(memory_format=torch.channels_last)
        lengths = (lengths + 1) // 2
        x = self._activate(self.conv1(x), lengths, 0)
        x = F.max_pool2d(self._activate(self.conv2(x), lengths, 1), (1, 2), ceil_mode=True)
        x = halve(self.norms[2](self.conv3(x)), lengths)
        lengths = (lengths + 1) // 2
        x = self.input_dropout(x.transpose(1, 2).flatten(2))  # [B, C, T, F] -> [B, T, C F]
        return self.rnn(x, lengths=lengths)[0], lengths

    def _activate(self, x: Tensor, lengths: Tensor, layer: int) -> Tensor:
        """Normalised and rectified ``[B, C, T, F]``, zero past the lengths."""
        return F.relu(self.norms[layer](x)) * frame_mask(lengths, x.shape[2])[:, None, :, None]

"""BiGRU-MHA: a bidirectional GRU and multi-head self-attention on a power spectrogram.

After "Artificial Intelligence and Robotics Research" 13(2), 2024, with experiments on IEMOCAP and Emo-DB. Our
reading where the paper is silent or unclear: the update h' = z h + (1 − z) n, one projection per query, key and
value, the mean over valid frames in front of the two linear layers, and the sizes. The paper normalises the power
itself; the default here is its logarithm, which does better on Emo-DB (``log=False`` is the paper's).
"""

from typing import Literal

from torch import Tensor

from ser_fast.models import options
from ser_fast.models.frame_model import FrameModel
from ser_fast.nn.gru import GRU
from ser_fast.nn.power_spectrogram import PowerSpectrogram


class BiGRUMHA(FrameModel):
    """Waveforms to emotion logits by BiGRU → multi-head self-attention → pooling → two linear layers.

    Args:
        num_classes: classes, or 1 for a regression.
        num_heads: heads; must divide ``2 * hidden_size``. The paper compares 4, 8, 16 and 32.
        hidden_size: units of the GRU in each direction.
        num_layers: layers of the GRU.
        reset_after: the GRU's form; the paper's is False.
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
        options.check("BiGRUMHA", num_classes, f_max, dropout=dropout, attention_dropout=attention_dropout)
        width = 2 * hidden_size
        options.check_heads("BiGRUMHA", num_heads, width)
        spectrogram = PowerSpectrogram(
            sample_rate, n_fft, win_length=win_length, hop_length=hop_length, f_max=f_max, log=log
        )
        bins = spectrogram.bins[1] - spectrogram.bins[0]
        rnn = GRU(bins, hidden_size, num_layers, batch_first=True, bidirectional=True, reset_after=reset_after)
        super().__init__(
            num_classes, spectrogram, rnn, width, num_heads=num_heads, attention_dropout=attention_dropout,
            dropout=dropout, pooling=pooling,
        )  # fmt: skip

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = self.rnn(x, lengths=lengths)
        return x, lengths

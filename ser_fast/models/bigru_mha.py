"""BiGRU-MHA: a bidirectional GRU and multi-head self-attention on a power spectrogram."""

from typing import Literal

from torch import Tensor

from ser_fast.models import options
from ser_fast.models.frame_model import FrameModel
from ser_fast.nn.gru import GRU


class BiGRUMHA(FrameModel):
    """Waveforms to emotion logits: spectrogram → BiGRU → multi-head self-attention → pooling → 2 linear layers.

    The model of *Artificial Intelligence and Robotics Research* 13(2), 2024, evaluated there on IEMOCAP and Emo-DB.
    The paper gives the spectrogram (16 kHz, 40 ms frames every 10 ms, DFT of 1600, 0 to 4 kHz), the GRU in both
    directions with input x_t and state h_t (equations 1-5, ``reset_after=False``), and the attention over all frames
    h (equations 6 and 7)::

        r_t = σ(W_r [h_{t-1}, x_t] + b_r)
        z_t = σ(W_z [h_{t-1}, x_t] + b_z)
        h̃_t = tanh(W [r_t ⊗ h_{t-1}, x_t] + b)
        Q = h W_q;  K = h W_k;  V = h W_v
        head_i = softmax(Q_i K_iᵀ / √d) V_i;  output = [head_1, ..., head_n] W_O

    Our reading, where the paper is silent or unclear:

    - The update, which is not printed, is h_t = z_t ⊗ h_{t-1} + (1 - z_t) ⊗ h̃_t.
    - Query, key and value are projected once; the paper's algorithm 1 projects them twice.
    - The frames are averaged before the two linear layers; ``pooling="attention"`` is an alternative.
    - The window is Hamming. Hidden size and number of layers are ours.
    - The paper normalises the power itself (``log=False``). The default is its logarithm, which is better on Emo-DB.

    Args:
        num_classes: number of classes, or 1 for regression.
        num_heads: attention heads; must divide ``2 * hidden_size``. The paper compares 4, 8, 16 and 32. Default: 8.
        hidden_size: hidden units of the GRU in each direction. Default: 128.
        num_layers: layers of the GRU. Default: 1.
        reset_after: form of the GRU; see :class:`GRU`. Default: False, the paper's.
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
        logits ``[B, num_classes]``; weights ``[B, num_heads, T, T]``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch, ser_fast
        >>> model = ser_fast.BiGRUMHA(num_classes=7).eval()
        >>> wave, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])  # 1 s and 0.75 s
        >>> model(wave, lengths).shape
        torch.Size([2, 7])
        >>> logits, weights = model(wave, lengths, return_weights=True)
        >>> weights.shape  # [B, heads, T, T]
        torch.Size([2, 8, 97, 97])
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
        features: int = 0,
        frame_rate: float = 50.0,
    ):
        options.check("BiGRUMHA", num_classes, f_max, dropout=dropout, attention_dropout=attention_dropout)
        width = 2 * hidden_size
        options.check_heads("BiGRUMHA", num_heads, width)
        spectrogram = options.front_end(
            "BiGRUMHA", features, frame_rate, sample_rate, n_fft, win_length=win_length, hop_length=hop_length,
            f_max=f_max, log=log,
        )  # fmt: skip
        bins = len(spectrogram.mean)
        rnn = GRU(bins, hidden_size, num_layers, batch_first=True, bidirectional=True, reset_after=reset_after)
        super().__init__(
            num_classes, spectrogram, rnn=rnn, width=width, num_heads=num_heads, attention_dropout=attention_dropout,
            dropout=dropout, pooling=pooling,
        )  # fmt: skip

    def encode(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the BiGRU's outputs of frames ``[B, T, F]``, padded or packed, and the lengths."""
        return self.recur(x, lengths), lengths

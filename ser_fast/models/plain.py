"""The two models from torch's layers alone, with ``nn.LSTM``: what a user has without this package.

They compute what ours compute except for the recurrence and take the same weights: what ours are measured against.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.models.bigru_mha import BiGRUMHA
from ser_fast.models.cgru import CGRU, DYNAMIC_RANGE
from ser_fast.models.convolution import halve, quarter
from ser_fast.models.masking import masked_mean
from ser_fast.models.self_attention import MultiHeadSelfAttention
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops import gray_deltas
from ser_fast.ops.lengths import frame_mask


class PlainSpectrogram(PowerSpectrogram):
    """``PowerSpectrogram`` by :func:`torch.stft`, without ``center``; cropped before the squared modulus.

    Example:
        >>> ours, wave, lengths = PowerSpectrogram(), torch.randn(2, 8000), torch.tensor([8000, 5000])
        >>> torch.allclose(PlainSpectrogram()(wave, lengths)[0], ours(wave, lengths)[0], atol=1e-2)
        True
    """

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spectrogram ``[B, T, F]``, 0 past each length, and the frames of each row."""
        # stft centres the window in n_fft; padding gives frames of win_length. |X|² does not depend on the shift.
        beside = self.n_fft - self.win_length
        wave = F.pad(wave, (beside // 2, beside - beside // 2))
        spectrum = torch.stft(wave, self.n_fft, self.hop_length, self.win_length, self.window, center=False,
                              return_complex=True)  # fmt: skip
        x = spectrum[:, slice(*self.bins)].abs().square().transpose(1, 2)
        if self.log:
            x = x.clamp(min=self.floor).log()
        if self.normalize:
            x = (x - self.mean) / self.std
        lengths = self.frame_lengths(lengths)
        return x.masked_fill(~frame_mask(lengths, x.shape[1])[..., None], 0), lengths


class PlainAttentionPool(AttentionPool):
    """``AttentionPool`` in plain PyTorch.

    Example:
        >>> PlainAttentionPool(8)(torch.randn(2, 5, 8), torch.tensor([5, 3])).shape
        torch.Size([2, 8])
    """

    def forward(self, h: Tensor, lengths: Tensor, return_weights: bool = False):
        """Return the pooled frames ``[B, D]``, or ``(pooled, weights [B, T])`` with ``return_weights``."""
        scores = (h @ self.weight).masked_fill(~frame_mask(lengths, h.shape[1]), -torch.inf)
        weights = torch.softmax(scores, 1)
        pooled = (weights[:, None] @ h).squeeze(1)
        return (pooled, weights) if return_weights else pooled


class PlainSelfAttention(MultiHeadSelfAttention):
    """``MultiHeadSelfAttention`` with the operators of ``nn.MultiheadAttention``: padding masked, torch's dropout.

    Example:
        >>> PlainSelfAttention(8, num_heads=2)(torch.randn(2, 5, 8), torch.tensor([5, 3])).shape
        torch.Size([2, 5, 8])
    """

    def forward(self, x: Tensor, lengths: Tensor, return_weights: bool = False, mean: bool = False):
        """Return the attended frames ``[B, T, D]``, with ``mean`` their mean; the weights by the superclass."""
        if return_weights:
            return super().forward(x, lengths, True, mean)
        batch, frames, width = x.shape
        valid = frame_mask(lengths, frames)[:, None, None]
        q, k, v = self.in_proj(x).view(batch, frames, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, valid, self.dropout if self.training else 0.0)
        y = self.out_proj(mixed.transpose(1, 2).reshape(batch, frames, width))
        return masked_mean(y, lengths) if mean else y


class PlainCGRU(CGRU):
    """:class:`CGRU` with ``nn.LSTM`` from torch's layers alone.

    The convolutions run row by row, since the feature maps of a row stay in the cache: two to three times as fast on
    a CPU as on whole padded batches, which most users would write.

    Args:
        num_classes: number of classes, or 1 for regression.
        channels: output channels of the two convolutions. Default: (16, 32).
        hidden_size: hidden units of the LSTM. Default: 128.
        dropout: dropout probability before the last layer, in 0..1, 1 excluded. Default: 0.3.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; weights ``[B, T']``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> PlainCGRU(6).eval()(torch.randn(2, 16000), torch.tensor([16000, 12000])).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: tuple[int, int] = (16, 32),
        hidden_size: int = 128,
        dropout: float = 0.3,
    ):
        super().__init__(num_classes, channels=channels, hidden_size=hidden_size, cell="lstm", dropout=dropout)
        self.spectrogram = PlainSpectrogram(n_fft=512, win_length=400, log=True)
        self.pool = PlainAttentionPool(hidden_size)

    def _convolve_and_recur(self, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self._recur(self._convolve(x, lengths, dtype), (lengths + 3) // 4)

    def _convolve(self, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        first, second = self.conv1.conv, self.conv2

        def convolve(x: Tensor, lengths: Tensor) -> Tensor:
            image = gray_deltas.reference(x, DYNAMIC_RANGE, lengths).permute(0, 3, 1, 2).to(dtype)
            # Both positions of the first filter as one 2-D convolution, four times as fast as Conv3d on CPU.
            pairs = torch.cat([image[:, :2], image[:, 1:]]).contiguous(memory_format=torch.channels_last)
            x = F.conv2d(pairs, first.weight, first.bias, padding=(2, 1))
            x = torch.maximum(*halve(x, lengths.repeat(2)).chunk(2))
            x = halve(F.conv2d(x, second.weight, second.bias, padding=(2, 1)), (lengths + 1) // 2)
            return x.transpose(1, 2).flatten(2)

        return quarter(convolve, x, lengths)[0]


class PlainBiGRUMHA(BiGRUMHA):
    """:class:`BiGRUMHA` with a packed, bidirectional ``nn.LSTM`` from torch's layers alone.

    Args:
        num_classes: number of classes, or 1 for regression.
        num_heads: attention heads; must divide ``2 * hidden_size``. Default: 8.
        hidden_size: hidden units of the LSTM in each direction. Default: 128.
        attention_dropout: dropout probability of the attention weights, in 0..1, 1 excluded. Default: 0.2.
        dropout: dropout probability between the two linear layers, in 0..1, 1 excluded. Default: 0.2.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; weights ``[B, num_heads, T, T]``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> PlainBiGRUMHA(7).eval()(torch.randn(2, 16000), torch.tensor([16000, 12000])).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        num_classes: int,
        num_heads: int = 8,
        *,
        hidden_size: int = 128,
        attention_dropout: float = 0.2,
        dropout: float = 0.2,
    ):
        super().__init__(num_classes, num_heads, hidden_size=hidden_size, dropout=dropout)
        self.spectrogram = PlainSpectrogram(log=True)
        self.rnn = nn.LSTM(self.rnn.input_size, hidden_size, batch_first=True, bidirectional=True)
        self.attention = PlainSelfAttention(2 * hidden_size, num_heads, attention_dropout)


def plain(model: CGRU | BiGRUMHA) -> CGRU | BiGRUMHA:
    """Return a copy of a model of default options with the layers of this file and the recurrence of the model.

    Example:
        >>> type(plain(CGRU(3)).pool).__name__
        'PlainAttentionPool'
    """
    twin = (PlainCGRU if isinstance(model, CGRU) else PlainBiGRUMHA)(model.classifier.out_features)
    twin.rnn = copy.deepcopy(model.rnn)
    if model.spectrogram.normalize:
        twin.spectrogram.set_statistics(model.spectrogram.mean, model.spectrogram.std)
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)

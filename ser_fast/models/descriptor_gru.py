"""DescriptorGRU: the model of the recipe ``own_gru``, a small convolution, GRU and pooling over frame descriptors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models import options
from ser_fast.models.descriptors import front_end
from ser_fast.models.masking import sample_lengths
from ser_fast.models.statistics import moments
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.ops import checks
from ser_fast.ops.lengths import frame_mask

FAR = 5.0  # standard deviations
KERNEL, STRIDE = 5, 2  # frames
TINY = 1e-5  # added to a variance before its root, whose derivative at 0 is infinite


class DescriptorGRU(nn.Module):
    """Waveforms to logits: frame descriptors → convolution → bidirectional GRU → pooling → one linear layer.

    A frame has ``n_cepstra`` + 16 descriptors, those of :class:`ser_fast.models.functionals.Functionals`:

    - cepstra of the standardised log mels;
    - voicing, pitch, level, and 1 for a voiced frame;
    - the 11 values of the spectral shape;
    - the pitch of a voiced frame less its mean over the utterance's voiced frames.

    They are standardised over the training frames and clamped to ±5. A convolution has a filter of 5 frames and a
    step of 2; batch normalisation over the valid frames and ReLU follow. The outputs h_t of the GRU are pooled by
    attention (equation 5 of paper 1), by their mean and by their standard deviation::

        α_t = exp(wᵀ h_t) / Σ_s exp(wᵀ h_s);  pooled = [Σ_t α_t h_t, mean_t h_t, std_t h_t]

    The three are standardised over the batch and classified by one linear layer after dropout. The model has
    about 64 000 parameters.

    Args:
        num_classes: number of outputs: classes, or targets of a regression.
        channels: output channels of the convolution. Default: 64.
        hidden_size: hidden units of the GRU in each direction. Default: 64.
        conv_dropout: dropout probability after the convolution, in 0..1, 1 excluded. Default: 0.2.
        dropout: dropout probability before the last layer, in 0..1, 1 excluded. Default: 0.5.
        reset_after: form of the GRU; see :class:`GRU`. Default: True.
        n_mels: bands of the mel spectrogram. Default: 64.
        n_cepstra: cepstral coefficients. Default: 20.
        n_lags: lags of the correlogram, which gives voicing and pitch. Default: 64.
        sample_rate: sample rate of the waveforms, in hertz; at least 10 000. Default: 16000.
        n_fft: DFT length, in samples; at least ``win_length`` and the longest period of a voice, 1/60 s. Default:
            1024.
        win_length: window length, in samples. Default: 640.
        hop_length: step between frames, in samples. Default: 320.
        f_min: lower end of the lowest band, in hertz. Default: 50.
        f_max: upper end of the highest band, in hertz. Default: 8000.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; weights ``[B, T']``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch
        >>> model = DescriptorGRU(7).eval()
        >>> logits, weights = model(torch.randn(2, 16000), torch.tensor([16000, 9000]), return_weights=True)
        >>> logits.shape, weights.shape  # one weight for 40 ms
        (torch.Size([2, 7]), torch.Size([2, 25]))
    """

    corpus_statistics = False  # the descriptors are standardised by batch normalisation
    groups = ("frames",)  # of utterance_features

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 64,
        hidden_size: int = 64,
        conv_dropout: float = 0.2,
        dropout: float = 0.5,
        reset_after: bool = True,
        n_mels: int = 64,
        n_cepstra: int = 20,
        n_lags: int = 64,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 320,
        f_min: float = 50.0,
        f_max: float = 8000.0,
    ):
        super().__init__()
        options.check("DescriptorGRU", num_classes, f_max, dropout=dropout, conv_dropout=conv_dropout)
        for name, value in (("channels", channels), ("hidden_size", hidden_size)):
            require(value >= 1, f"DescriptorGRU: {name} is {value!r}", "at least 1")
        self.cut = n_mels, n_cepstra, n_lags, f_min, f_max
        sizes = sample_rate, n_fft, win_length, hop_length
        self.spectrogram, self.descriptors = front_end("DescriptorGRU", *sizes, *self.cut)
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        width = n_cepstra + 16
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.conv = nn.Conv1d(width, channels, KERNEL, stride=STRIDE, padding=KERNEL // 2)
        self.conv_norm = nn.BatchNorm1d(channels, affine=False)
        self.conv_dropout = nn.Dropout(conv_dropout)
        self.rnn = GRU(channels, hidden_size, batch_first=True, bidirectional=True, reset_after=reset_after)
        self.pool = AttentionPool(2 * hidden_size)
        self.pool_norm = nn.BatchNorm1d(6 * hidden_size, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(6 * hidden_size, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples between two attention weights."""
        return STRIDE * self.spectrogram.hop_length

    @property
    def front_end(self) -> tuple:
        """Return the options that determine the descriptors."""
        front = self.spectrogram
        return ("frames", front.sample_rate, front.n_fft, front.win_length, front.hop_length, *self.cut,
                self.descriptors.filters.dtype)  # fmt: skip

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Return the logits of a padded batch, and on request the attention weights.

        In evaluation mode a row's logits do not depend on its padding or on the other rows.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``, in 0..N; by default N in every row.
            return_weights: also return the attention weights.

        Returns:
            Logits ``[B, num_classes]``, or ``(logits, weights)`` with weights ``[B, T']``, one for each
            :attr:`weights_hop` samples, whose sum is 1 over the valid ones.

        Raises:
            RuntimeError: if ``wave`` or ``lengths`` has an invalid shape, dtype, device or value.
        """
        return self.classify(*self.features(wave, lengths), return_weights)

    def features(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the descriptors of each frame, and the frames of each row.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``; by default N in every row.

        Returns:
            Descriptors ``[B, T, n_cepstra + 16]``, 0 past each length, and lengths ``[B]`` in frames.
        """
        lengths = sample_lengths(type(self).__name__, wave, lengths)
        power, lengths = self.spectrogram(wave, lengths)
        if self.spec_augment is not None:
            power = self.spec_augment(power, lengths)
        if power.numel() and checks.readable(power) and not checks.transforming():  # rows do not depend on each other
            rows = [self._described(power[i : i + 1], lengths[i : i + 1]) for i in range(len(power))]
            return torch.cat(rows), lengths
        return self._described(power, lengths), lengths

    def utterance_features(self, wave: Tensor, groups: tuple[str, ...] = groups) -> dict[str, Tensor]:
        """Return the descriptors of one utterance, with the values of :meth:`features`.

        Args:
            wave: waveform ``[N]`` at ``sample_rate``.
            groups: ``("frames",)``.

        Returns:
            Descriptors ``[T, n_cepstra + 16]`` under ``"frames"``.
        """
        return {name: self.features(wave[None])[0][0] for name in groups}

    def classify(self, features: Tensor, lengths: Tensor, return_weights: bool = False):
        """Return the logits of frame descriptors, and on request the attention weights.

        Args:
            features: descriptors ``[B, T, n_cepstra + 16]`` of :meth:`features`.
            lengths: frames of each row ``[B]``.
            return_weights: return ``(logits, weights)``.

        Returns:
            Logits ``[B, num_classes]``, or ``(logits, weights)`` with weights ``[B, T']``.
        """
        x = features.to(self.classifier.weight.dtype)
        x = _normalized(self.norm, x, frame_mask(lengths, x.shape[1])).clamp(-FAR, FAR)
        # Conv1d needs a frame.
        x = self.conv(F.pad(x.mT, (0, int(x.shape[1] == 0)))).mT[:, : (x.shape[1] + STRIDE - 1) // STRIDE]
        lengths = (lengths + STRIDE - 1) // STRIDE
        valid = frame_mask(lengths, x.shape[1])
        x = self.conv_dropout(F.relu(_normalized(self.conv_norm, x, valid)))
        y = self.rnn(x, lengths=lengths)[0]
        attended, weights = self.pool(y, lengths, return_weights=True)
        mean, variance = _mean_and_variance(y, valid)
        pooled = torch.cat([attended, mean, (variance + TINY).sqrt()], 1)
        # A single utterance has no variance to be normalised by.
        norm, alone = self.pool_norm, self.training and len(pooled) == 1
        pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, eps=norm.eps) if alone else norm(pooled)
        logits = self.classifier(self.dropout(pooled.clamp(-FAR, FAR)))
        return (logits, weights) if return_weights else logits

    def _described(self, power: Tensor, lengths: Tensor) -> Tensor:
        frames = self.descriptors(power, lengths)
        voiced = frames.voiced[..., None].to(frames.pitch.dtype)
        pitch = (frames.pitch - moments(frames.pitch, frames.voiced)[0][:, None]) * voiced
        found = [frames.cepstra, frames.voicing, frames.pitch, frames.level, voiced, frames.shape, pitch]
        return torch.cat(found, 2).masked_fill(~frames.valid[..., None], 0)


def _normalized(norm: nn.BatchNorm1d, x: Tensor, valid: Tensor) -> Tensor:
    """Return ``x`` ``[B, T, D]`` normalised over the valid frames ``[B, T]``, 0 elsewhere."""
    if not norm.training or not valid.any() or valid.sum() == 1:
        x = F.batch_norm(x.mT, norm.running_mean, norm.running_var, eps=norm.eps).mT
        return x.masked_fill(~valid[..., None], 0)
    return torch.zeros_like(x).index_put((valid,), norm(x[valid]))


def _mean_and_variance(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance ``[B, D]`` over the valid frames; 0 for a row without one."""
    valid, count = valid[..., None], valid.sum(1).clamp(min=1)[:, None]
    mean = x.masked_fill(~valid, 0).sum(1) / count
    return mean, (x - mean[:, None]).masked_fill(~valid, 0).square().sum(1) / count

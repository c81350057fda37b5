"""DescriptorGRU: the model of ``own_gru`` and ``own_both``, GRUs over frame descriptors beside their statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models import options
from ser_fast.models.descriptors import Frames, front_end
from ser_fast.models.masking import sample_lengths
from ser_fast.models.statistics import GROUPS, counted, moments, ordered
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.ops import checks
from ser_fast.ops.lengths import frame_mask

FAR = 5.0  # standard deviations
KERNEL, STRIDE = 5, 2  # frames
TINY = 1e-5  # added to a variance before its root, whose derivative at 0 is infinite


class DescriptorGRU(nn.Module):
    """Waveforms to logits: frame descriptors → branches, GRUs and statistics → one linear layer.

    A frame has ``n_cepstra`` + 16 descriptors, those of :class:`ser_fast.models.functionals.Functionals`:

    - cepstra of the standardised log mels;
    - voicing, pitch, level, and 1 for a voiced frame;
    - the 11 values of the spectral shape;
    - the pitch of a voiced frame less its mean over the utterance's voiced frames.

    They are standardised over the training frames and clamped to ±5. Each of ``members`` networks reads every
    ``step``-th frame: a convolution with a filter of 5 frames and a step of 2, batch normalisation over the valid
    frames, ReLU, a bidirectional GRU. The outputs h_t of the GRU are pooled by attention (equation 5 of paper 1), by
    their mean and by their standard deviation, the root of the variance plus 1e-5::

        α_t = exp(wᵀ h_t) / Σ_s exp(wᵀ h_s);  x_k = [Σ_t α_t h_t, mean_t h_t, std_t h_t]

    A further branch x_0 has statistics over all frames, ``groups`` of those of ``Functionals``. Every x is
    standardised over the batch and clamped to ±5. After dropout the linear layer weighs the statistics as all
    networks together::

        logits = ½ W_0 x_0 + ½ / members · Σ_k W_k x_k + b

    Without groups the networks share the whole weight. :meth:`branch_logits` gives W_k x_k + b of each branch, whose
    losses the trainer averages, so that the branches learn separately and agree at the end only.

    Args:
        num_classes: number of outputs: classes, or targets of a regression.
        members: networks, which differ in their initial weights and in their dropout. Default: 1.
        groups: groups of statistics, see :class:`ser_fast.models.functionals.Functionals`; their order does not
            matter. Default: none.
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
        hop_length: step between frames, in samples. Default: 160.
        step: frames from one that the networks read to the next. Default: 2.
        f_min: lower end of the lowest band, in hertz. Default: 50.
        f_max: upper end of the highest band, in hertz. Default: 8000.

    Attributes:
        shares: weight of each branch in the logits.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``; weights ``[B, T']``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch
        >>> model = DescriptorGRU(7, members=2, groups=("distributions", "trends")).eval()
        >>> logits, weights = model(torch.randn(2, 16000), torch.tensor([16000, 9000]), return_weights=True)
        >>> logits.shape, weights.shape  # one weight for 40 ms
        (torch.Size([2, 7]), torch.Size([2, 25]))
    """

    corpus_statistics = False  # the descriptors are standardised by batch normalisation

    def __init__(
        self,
        num_classes: int,
        *,
        members: int = 1,
        groups: tuple[str, ...] = (),
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
        hop_length: int = 160,
        step: int = 2,
        f_min: float = 50.0,
        f_max: float = 8000.0,
    ):
        super().__init__()
        options.check("DescriptorGRU", num_classes, f_max, dropout=dropout, conv_dropout=conv_dropout)
        sizes = {"members": members, "channels": channels, "hidden_size": hidden_size, "step": step}
        for name, value in sizes.items():
            require(value >= 1, f"DescriptorGRU: {name} is {value!r}", "at least 1")
        self.statistics = ordered("DescriptorGRU", groups)
        self.groups = (*self.statistics, "frames")  # of utterance_features
        self.step, self.cut = step, (n_mels, n_cepstra, n_lags, f_min, f_max)
        self.spectrogram, self.descriptors = front_end(
            "DescriptorGRU", sample_rate, n_fft, win_length, hop_length, *self.cut
        )
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        self.width = n_cepstra + 16
        self.count = counted(self.statistics, n_mels, n_cepstra, n_lags)
        self.norm = nn.BatchNorm1d(self.width, affine=False)
        networks = [_Network(self.width, channels, hidden_size, conv_dropout, reset_after) for _ in range(members)]
        self.networks = nn.ModuleList(networks)
        self.statistics_norm = nn.BatchNorm1d(self.count, affine=False) if self.statistics else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.count + members * 6 * hidden_size, num_classes)
        own = [0.5] if self.statistics else []
        self.shares = own + [(1 - sum(own)) / members] * members  # of the branches in the logits

    @property
    def weights_hop(self) -> int:
        """Samples between two attention weights."""
        return STRIDE * self.step * self.spectrogram.hop_length

    @property
    def front_end(self) -> tuple:
        """Return the options that determine the descriptors."""
        front = self.spectrogram
        return ("frames", front.sample_rate, front.n_fft, front.win_length, front.hop_length, self.step, *self.cut,
                self.descriptors.filters.dtype)  # fmt: skip

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Return the logits of a padded batch, and on request the attention weights.

        In evaluation mode a row's logits do not depend on its padding or on the other rows.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``, in 0..N; by default N in every row.
            return_weights: also return the attention weights.

        Returns:
            Logits ``[B, num_classes]``, or ``(logits, weights)`` with the mean of the networks' weights ``[B, T']``.
        """
        return self.classify(*self.features(wave, lengths), return_weights)

    def features(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the statistics and then the frame descriptors of each utterance, in one row.

        On a CPU each row is computed alone, so that its values do not depend on the other rows, except in a traced
        graph.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``; by default N in every row.

        Returns:
            Features ``[B, count + T · (n_cepstra + 16)]``, 0 past each length, and their lengths ``[B]``.
        """
        lengths = sample_lengths(type(self).__name__, wave, lengths)
        power, lengths = self.spectrogram(wave, lengths)
        if self.spec_augment is not None:
            power = self.spec_augment(power, lengths)
        parts = [(power, lengths)]
        if len(power) and checks.readable(power) and checks.readable(lengths) and not checks.transforming():
            sizes = enumerate(lengths.tolist())
            parts = [(power[i : i + 1, : max(size, 1)], lengths[i : i + 1]) for i, size in sizes]
        flat = [torch.cat([values.flatten(1) for values in self._grouped(*part).values()], 1) for part in parts]
        longest = self._size(power.shape[1])
        return torch.cat([F.pad(row, (0, longest - row.shape[1])) for row in flat]), self._size(lengths)

    def utterance_features(self, wave: Tensor, groups: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Return the features of one utterance, with the values of :meth:`features`.

        Args:
            wave: waveform ``[N]`` at ``sample_rate``.
            groups: names of the groups, those of the model and ``"frames"``; all by default.

        Returns:
            Values ``[D]`` of each group, by name.
        """
        power, lengths = self.spectrogram(wave[None], torch.tensor([len(wave)], device=wave.device))
        found = self._grouped(power, lengths)
        return {name: found[name].flatten() for name in groups or self.groups}

    def classify(self, features: Tensor, lengths: Tensor, return_weights: bool = False):
        """Return the logits of features, and on request the attention weights.

        Args:
            features: features ``[B, D]`` of :meth:`features`.
            lengths: features of each row ``[B]``.
            return_weights: return ``(logits, weights)``.

        Returns:
            Logits ``[B, num_classes]``, or ``(logits, weights)`` with weights ``[B, T']``.
        """
        branches, weights = self._branches(features, lengths)
        weighted = [share * x for share, x in zip(self.shares, branches)]
        logits = self.classifier(torch.cat(weighted, 1))
        return (logits, weights) if return_weights else logits

    def branch_logits(self, features: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return the logits ``[B, num_classes]`` of each branch alone, those of the statistics first.

        Args:
            features: features ``[B, D]`` of ``features``.
            lengths: features of each row ``[B]``.
        """
        branches, _ = self._branches(features, lengths)
        weights = self.classifier.weight.split([x.shape[1] for x in branches], 1)
        return [F.linear(x, weight, self.classifier.bias) for x, weight in zip(branches, weights)]

    def _branches(self, features: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the standardised inputs ``[B, D_k]`` of the last layer and the mean attention weights."""
        x = features.to(self.classifier.weight.dtype)
        statistics, x = x[:, : self.count], x[:, self.count :].unflatten(1, (-1, self.width))
        lengths = (lengths - self.count) // self.width
        x = _normalized(self.norm, x, frame_mask(lengths, x.shape[1])).clamp(-FAR, FAR)
        found, weights = zip(*(network(x, lengths) for network in self.networks))
        found = ([_over_batch(self.statistics_norm, statistics)] if self.statistics else []) + list(found)
        # Clamped, so that one value far outside does not decide alone.
        return [self.dropout(x.clamp(-FAR, FAR)) for x in found], sum(weights) / len(weights)

    def _size(self, frames: int | Tensor) -> int | Tensor:
        """Return the number of features of an utterance."""
        return self.count + self.width * ((frames + self.step - 1) // self.step)

    def _grouped(self, power: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return the groups of statistics ``[B, D]`` and the frame descriptors ``[B, T, n_cepstra + 16]``."""
        frames = self.descriptors(power, lengths)
        statistics = {name: torch.cat(GROUPS[name](frames), 1) for name in self.statistics}
        return statistics | {"frames": _columns(frames)[:, :: self.step]}


class _Network(nn.Module):
    """Convolution → GRU → pooling of standardised frames ``[B, T, width]``: ``[B, 6 hidden]`` and weights."""

    def __init__(self, width: int, channels: int, hidden_size: int, conv_dropout: float, reset_after: bool):
        super().__init__()
        self.conv = nn.Conv1d(width, channels, KERNEL, stride=STRIDE, padding=KERNEL // 2)
        self.conv_norm = nn.BatchNorm1d(channels, affine=False)
        self.conv_dropout = nn.Dropout(conv_dropout)
        self.rnn = GRU(channels, hidden_size, batch_first=True, bidirectional=True, reset_after=reset_after)
        self.pool = AttentionPool(2 * hidden_size)
        self.pool_norm = nn.BatchNorm1d(6 * hidden_size, affine=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # Conv1d needs a frame.
        x = self.conv(F.pad(x.mT, (0, int(x.shape[1] == 0)))).mT[:, : (x.shape[1] + STRIDE - 1) // STRIDE]
        lengths = (lengths + STRIDE - 1) // STRIDE
        valid = frame_mask(lengths, x.shape[1])
        x = self.conv_dropout(F.relu(_normalized(self.conv_norm, x, valid)))
        y = self.rnn(x, lengths=lengths)[0]
        attended, weights = self.pool(y, lengths, return_weights=True)
        mean, variance = _mean_and_variance(y, valid)
        return _over_batch(self.pool_norm, torch.cat([attended, mean, (variance + TINY).sqrt()], 1)), weights


def _columns(frames: Frames) -> Tensor:
    """Return the descriptors ``[B, T, n_cepstra + 16]`` of frames, 0 past each length."""
    voiced = frames.voiced[..., None].to(frames.pitch.dtype)
    pitch = (frames.pitch - moments(frames.pitch, frames.voiced)[0][:, None]) * voiced
    found = [frames.cepstra, frames.voicing, frames.pitch, frames.level, voiced, frames.shape, pitch]
    return torch.cat(found, 2).masked_fill(~frames.valid[..., None], 0)


def _over_batch(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Return ``x`` ``[B, D]`` normalised over the batch; a single row in training has no variance of its own."""
    if norm.training and len(x) == 1:
        return F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
    return norm(x)


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

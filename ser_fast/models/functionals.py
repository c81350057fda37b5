"""Functionals: the model of the recipe ``own``, statistics of each utterance's frames and one linear layer.

The statistics resemble openSMILE's feature sets (Eyben et al., "openSMILE", 2010; Schuller et al., "The INTERSPEECH
2013 Computational Paralinguistics Challenge"): descriptors of spectrum and voice in each frame, and their
distributions over the utterance. Training at several speeds keeps the layer from learning the speakers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.models import options
from ser_fast.models.descriptors import front_end
from ser_fast.models.masking import sample_lengths
from ser_fast.models.statistics import GROUPS, counted, ordered
from ser_fast.ops import checks

ROWS = 8  # computed at a time: their spectrograms fit the processor's cache
FAR = 5.0  # standard deviations


class Functionals(nn.Module):
    """Waveforms to logits by statistics over frames → batch normalisation → dropout → one linear layer.

    Descriptors of each frame, all computed from one power spectrogram P:

    - mels: logarithm of ``n_mels`` mel bands, standardised over the utterance;
    - cepstra: the first ``n_cepstra`` coefficients of the cosine transform of the mels;
    - correlogram: the autocorrelation r(τ) = Σ_k P_k cos(2π f_k τ) at ``n_lags`` lags τ, divided by r(0) and by the
      autocorrelation of the window;
    - voicing: maximum of the correlogram over the lags;
    - pitch: 1/τ at that maximum;
    - level: logarithm of the power, relative to the loudest frame. A frame is voiced if its voicing is above 0.6 and
      its level within 40 dB of the loudest frame.
    - shape of the spectrum above 50 Hz:

      - centroid and spread;
      - frequencies below which 25, 50, 75 and 90 % of the power lie;
      - flatness: mean of the logarithm minus logarithm of the mean;
      - logarithm of the ratio of the power in 1–5 kHz to the power below;
      - logarithms of the ratios of the strongest bin below 0.5 kHz to those of 0.5–1 and of 1–2 kHz;
      - squared distance between the square roots of this frame's and the previous frame's spectrum.

    Groups of statistics over the utterance. A distribution is mean, standard deviation and five quantiles. The
    default has all groups but the last three:

    - ``distributions``: distributions of mels, cepstra, voicing and level;
    - ``voiced``: distributions of mels and pitch over the voiced frames, and of the steps of the pitch from frame to
      frame that are below 0.3 octaves;
    - ``correlogram``: its mean and deviation;
    - ``changes``: deviation and mean size of the changes of mels and cepstra from each frame to the second next;
    - ``shape``: distributions of the shape, of such changes of it, and of the shape over the voiced frames;
    - ``slopes``: distributions of the slopes of the mels over the voiced frames;
    - ``trends``: rise of the regression lines of mels, cepstra, level, voicing and pitch;
    - ``thirds``: mean mels of the first and the last third less those of the middle one;
    - ``rhythm``: share of voiced frames, rate of beginnings and ends of voicing, logarithm of the number of frames;
    - ``unvoiced``: distributions of mels over the other frames;
    - ``levels``: mean and deviation of mels and cepstra over the frames within 10 dB of the loudest, and over those
      20 dB or more below it;
    - ``modulation``: logarithm of the power of the modulations per frame, in 8 ranges below half the frame rate, of
      16 bands of mels, of voicing and of level.

    Args:
        num_classes: number of classes, or 1 for a regression.
        groups: names of the groups of statistics; their order does not matter.
        n_mels: bands of the mel spectrogram.
        n_cepstra: cepstral coefficients.
        n_lags: lags of the correlogram.
        dropout: dropout probability of the statistics, in 0..1.
        sample_rate: sample rate of the waveforms, in hertz; at least 10 000.
        n_fft: size of the DFT, in samples; at least ``win_length`` and the longest period of a voice, 1/60 s.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_min: lower end of the lowest band, in hertz.
        f_max: upper end of the highest band, in hertz.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; logits ``[B, num_classes]``.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch
        >>> model = Functionals(7).eval()
        >>> model(torch.randn(2, 16000), torch.tensor([16000, 9000])).shape
        torch.Size([2, 7])
    """

    corpus_statistics = False  # each utterance is standardised over itself, the statistics by batch normalisation

    def __init__(
        self,
        num_classes: int,
        *,
        groups: tuple[str, ...] = (
            "distributions", "voiced", "correlogram", "changes", "shape", "slopes", "trends", "thirds", "rhythm",
        ),
        n_mels: int = 64,
        n_cepstra: int = 20,
        n_lags: int = 64,
        dropout: float = 0.5,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 160,
        f_min: float = 50.0,
        f_max: float = 8000.0,
    ):  # fmt: skip
        super().__init__()
        options.check("Functionals", num_classes, f_max, dropout=dropout)
        require(bool(groups), f"Functionals: groups is {groups!r}", f"some of {', '.join(GROUPS)}, each once")
        self.groups = ordered("Functionals", groups)
        self.cut = n_mels, n_cepstra, n_lags, f_min, f_max
        sizes = sample_rate, n_fft, win_length, hop_length
        self.spectrogram, self.descriptors = front_end("Functionals", *sizes, *self.cut)
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        count = counted(self.groups, n_mels, n_cepstra, n_lags)
        self.norm = nn.BatchNorm1d(count, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(count, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples from one frame to the next."""
        return self.spectrogram.hop_length

    @property
    def front_end(self) -> tuple:
        """Return the options that determine the features, besides :attr:`groups`."""
        front = self.spectrogram
        return (front.sample_rate, front.n_fft, front.win_length, front.hop_length, *self.cut,
                self.descriptors.filters.dtype)  # fmt: skip

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Return the logits of a padded batch.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``; by default N in every row.
            return_weights: return ``(logits, None)``, since there are no attention weights.

        Returns:
            Logits ``[B, num_classes]``, or ``(logits, None)`` with ``return_weights``.
        """
        logits = self.classify(self.features(wave, lengths))
        return (logits, None) if return_weights else logits

    def features(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the statistics of each utterance.

        On a CPU each row is computed alone, so that its values do not depend on the other rows, except with
        ``spec_augment`` in training, whose masks are drawn for the whole batch, and in a traced graph.

        Args:
            wave: waveforms ``[B, N]`` at ``sample_rate``.
            lengths: samples of each row ``[B]``; by default N in every row.

        Returns:
            Statistics ``[B, count]``.
        """
        lengths = sample_lengths(type(self).__name__, wave, lengths)
        masked = self.training and self.spec_augment is not None
        known = wave.numel() > 0 and checks.readable(wave) and checks.readable(lengths)
        if known and not masked:
            checks.lengths("Functionals", lengths, wave, *wave.shape)
            return torch.cat([
                self.statistics(*self.spectrogram(wave[i : i + 1, : max(size, 1)], lengths[i : i + 1]))
                for i, size in enumerate(lengths.tolist())
            ])  # fmt: skip
        power, lengths = self.spectrogram(wave, lengths)
        if self.spec_augment is not None:
            power = self.spec_augment(power, lengths)
        return torch.cat([self.statistics(*few) for few in zip(power.split(ROWS), lengths.split(ROWS))])

    def utterance_features(self, wave: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
        """Return groups of the statistics of one utterance, with the values of :meth:`features`.

        Args:
            wave: waveform ``[N]`` at ``sample_rate``.
            groups: names of the groups.

        Returns:
            Statistics ``[D]`` of each group, by name.
        """
        power, lengths = self.spectrogram(wave[None], torch.tensor([len(wave)], device=wave.device))
        return {name: values[0] for name, values in self._grouped(power, lengths, groups).items()}

    def classify(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits of statistics.

        Args:
            features: statistics ``[B, count]`` of :meth:`features`.
            lengths: ignored; the features of other models vary in number.

        Returns:
            Logits ``[B, num_classes]``.
        """
        x, norm = features.to(self.classifier.weight.dtype), self.norm
        # A single utterance has no variance to be normalised by.
        alone = self.training and len(x) == 1
        x = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps) if alone else norm(x)
        # Clamped, so that one statistic far outside does not decide alone.
        return self.classifier(self.dropout(x.clamp(-FAR, FAR)))

    def statistics(self, power: Tensor, lengths: Tensor) -> Tensor:
        """Return the statistics of power spectrograms.

        Args:
            power: power spectrograms ``[B, T, F]``.
            lengths: valid frames of each row ``[B]``.

        Returns:
            Statistics ``[B, count]``, the selected groups one after the other.
        """
        return torch.cat(list(self._grouped(power, lengths, self.groups).values()), 1)

    def _grouped(self, power: Tensor, lengths: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        frames = self.descriptors(power, lengths)
        return {name: torch.cat(GROUPS[name](frames), 1) for name in names}

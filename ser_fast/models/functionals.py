"""Functionals: our own recipe's model, statistics of each utterance's frames and one linear layer.

On half an hour of speech no recurrence and no convolution that we tried came near it. The statistics are of the kind
that openSMILE's feature sets gather (Eyben et al., "openSMILE", 2010; Schuller et al., "The INTERSPEECH 2013
Computational Paralinguistics Challenge"): spectrum and voice in each frame, and how they are distributed over the
utterance. Training at several speeds keeps the layer from learning the speakers.
"""

import ctypes
import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.models import options
from ser_fast.models.descriptors import PITCH, Descriptors
from ser_fast.models.masking import full_lengths
from ser_fast.models.statistics import GROUPS
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops import checks

ROWS = 8  # at a time, whose spectrograms stay in the cache where those of a batch would not
KEPT_BYTES = 1 << 28  # of statistics that were seen, about those of 20 000 utterances
TENSOR_BYTES = 512  # that a tensor takes beside its values
FAR = 5.0  # standard deviations


class Memory:
    """Groups of statistics of waves that were seen, emptied before it passes :data:`KEPT_BYTES`."""

    def __init__(self):
        self.seen: dict[bytes, dict[str, Tensor]] = {}
        self.bytes = 0

    def of(self, key: bytes) -> dict[str, Tensor]:
        return self.seen.get(key, {})

    def add(self, key: bytes, groups: dict[str, Tensor]) -> dict[str, Tensor]:
        """All groups of the wave."""
        known = self.seen.pop(key, {})
        self.bytes -= _size(known)
        known = known | groups
        if self.bytes + _size(known) > KEPT_BYTES:
            self.seen, self.bytes = {}, 0
        self.seen[key] = known
        self.bytes += _size(known)
        return known


def _size(groups: dict[str, Tensor]) -> int:
    return sum(values.nbytes + TENSOR_BYTES for values in groups.values())


# Of every model in the process: folds and candidates of a cross-validation share their waves.
_SEEN = Memory()


class Functionals(nn.Module):
    """Waveforms to logits by statistics over frames → batch normalisation → dropout → one linear layer.

    In each frame, from one power spectrogram P: the logarithm of ``n_mels`` mels, standardised over the utterance;
    the first ``n_cepstra`` coefficients of its cosine transform; and the correlogram, the frame's autocorrelation
    r(τ) = Σ_k P_k cos(2π f_k τ) over r(0) and over the window's own, at ``n_lags`` lags. Its maximum over the lags
    is the voicing, and 1/τ there the pitch; a frame whose voicing is above 0.6 is voiced, unless it is 40 dB below
    the loudest. The level is the logarithm of its power over the loudest's.

    The spectrum's shape, also in each frame, above 50 Hz: centroid and spread, the frequencies below which a quarter,
    half, three quarters and nine tenths of the power lie, flatness (the mean logarithm less the logarithm of the
    mean), the logarithm of the power of 1–5 kHz over that below, of the strongest bin below 0.5 kHz over those of
    0.5–1 and of 1–2 kHz, and the squared distance of the square roots of this and the last frame's spectrum.

    Over the utterance, in groups, of which the last three are none of the default's; a distribution is mean, standard
    deviation and five quantiles:

    - ``distributions``: of mels, cepstra, voicing and level;
    - ``voiced``: those of mels and pitch over the voiced frames, and of its steps below 0.3 octaves between them;
    - ``correlogram``: its mean and deviation;
    - ``changes``: deviation and mean size of those of mels and cepstra;
    - ``shape``: the distributions of the shape, of its changes, and of the shape over the voiced frames;
    - ``slopes``: the distributions of the mels' over the voiced frames;
    - ``trends``: of mels, cepstra, level, voicing and pitch;
    - ``thirds``: the mean mels of the first and the last third less the middle one's;
    - ``rhythm``: the share of voiced frames, how often voicing begins or ends, the logarithm of the number of frames;
    - ``unvoiced``: the distributions of mels over the other frames;
    - ``levels``: mean and deviation of mels and cepstra over the frames within 10 dB of the loudest, and over those
      20 dB or more below it;
    - ``modulation``: the logarithm of the modulations' power per frame, in 8 ranges below half the frame rate, of 16
      bands of mels, voicing and level.

    Args:
        num_classes: classes, or 1 for a regression.
        groups: of statistics, of those above.
        n_mels: bands of the mel spectrogram.
        n_cepstra: cepstral coefficients.
        n_lags: lags of the correlogram.
        dropout: of the statistics, in 0..1.
        sample_rate: of the waveforms, in hertz.
        n_fft: size of the DFT, in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_min: where the lowest band begins, in hertz.
        f_max: where the highest band ends, in hertz.
    """

    corpus_statistics = False  # an utterance is standardised over itself, its statistics by the batch normalisation

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
        for name, value in (("n_mels", n_mels), ("n_cepstra", n_cepstra), ("n_lags", n_lags)):
            options.require(value >= 1, "Functionals", name, value, "at least 1")
        options.require(n_cepstra <= n_mels, "Functionals", "n_cepstra", n_cepstra, f"at most n_mels, {n_mels}")
        names = isinstance(groups, (list, tuple)) and all(isinstance(name, str) for name in groups)
        known = names and groups and len(set(groups) & GROUPS.keys()) == len(groups)
        options.require(bool(known), "Functionals", "groups", groups, f"some of {', '.join(GROUPS)}, each once")
        longest = sample_rate / PITCH[0]
        options.require(sample_rate >= 10000, "Functionals", "sample_rate", sample_rate, "at least 10000 hertz")
        options.require(n_fft >= win_length + longest, "Functionals", "n_fft", n_fft,
                        f"at least {win_length + longest:.0f}, the frame and the longest period")  # fmt: skip
        self.spectrogram = PowerSpectrogram(
            sample_rate,
            n_fft,
            win_length=win_length,
            hop_length=hop_length,
            f_max=sample_rate / 2,
            window_fn=torch.hann_window,
        )
        self.spec_augment = None  # training may set a parameterless module: (spec, lengths) -> spec
        self.cut = n_mels, n_cepstra, n_lags, f_min, f_max
        self.descriptors = Descriptors(self.spectrogram.window, n_fft, sample_rate, *self.cut)
        # In one order, whatever the option's: weights belong to statistics.
        self.groups = tuple(name for name in GROUPS if name in groups)
        count = self.statistics(torch.zeros(1, 1, n_fft // 2 + 1), torch.ones(1, dtype=torch.long)).shape[1]
        self.norm = nn.BatchNorm1d(count, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(count, num_classes)

    @property
    def weights_hop(self) -> int:
        """Samples from one frame to the next."""
        return self.spectrogram.hop_length

    def forward(self, wave: Tensor, lengths: Tensor | None = None, return_weights: bool = False):
        """Logits ``[B, classes]`` of ``wave`` ``[B, N]`` with lengths ``[B]`` in samples.

        With ``return_weights`` also None: there is no attention.
        """
        lengths = full_lengths(wave) if lengths is None else lengths
        x = self._remembered(wave, lengths) if self._remembers(wave, lengths) else self._computed(wave, lengths)
        x = x.to(self.classifier.weight.dtype)
        norm = self.norm
        # A single utterance has no variance to be normalised by.
        alone = self.training and len(x) == 1
        x = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps) if alone else norm(x)
        # One statistic far outside does not decide alone.
        logits = self.classifier(self.dropout(x.clamp(-FAR, FAR)))
        return (logits, None) if return_weights else logits

    def _computed(self, wave: Tensor, lengths: Tensor) -> Tensor:
        power, lengths = self.spectrogram(wave, lengths)
        if self.spec_augment is not None:
            power = self.spec_augment(power, lengths)
        return torch.cat([self.statistics(*few) for few in zip(power.split(ROWS), lengths.split(ROWS))])

    def _remembers(self, wave: Tensor, lengths: Tensor) -> bool:
        """Whether the statistics are those of a wave alone: plain values on a CPU, which no hook changes."""
        watched = (self.spectrogram, self.descriptors)
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in watched)
        edited = (
            hooked or self.spec_augment is not None or self.spectrogram.normalize or torch.is_autocast_enabled("cpu")
        )
        plain = wave.dim() == 2 and wave.numel() and not (edited or wave.requires_grad or checks.transforming())
        return bool(plain) and wave.device.type == "cpu" and checks.readable(lengths) and checks.readable(wave)

    def _remembered(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """The same row by row, looked up where a row was seen before: a training meets its waves in every epoch.

        A row is computed alone, so that what is remembered does not hang on the batch in which it was met first.
        """
        checks.lengths("Functionals", lengths, wave, *wave.shape)
        front = self.spectrogram
        given = front.sample_rate, front.n_fft, front.win_length, front.hop_length, self.cut
        rows = []
        for row, size in zip(wave, lengths.tolist()):
            row = row[: max(size, 1)].contiguous()
            content = ctypes.string_at(row.data_ptr(), size * row.itemsize)
            what = repr((given, self.descriptors.filters.dtype, row.dtype, size))
            key = what.encode() + hashlib.sha256(content).digest()
            known = _SEEN.of(key)
            missing = [name for name in self.groups if name not in known]
            if missing:
                spec, frames = self.spectrogram(row[None], torch.tensor([size]))
                known = _SEEN.add(key, self._grouped(spec, frames, missing))
            rows.append(torch.cat([known[name] for name in self.groups], 1))
        return torch.cat(rows)

    def _grouped(self, power: Tensor, lengths: Tensor, names: list[str] | tuple[str, ...]) -> dict[str, Tensor]:
        frames = self.descriptors(power, lengths)
        return {name: torch.cat(GROUPS[name](frames), 1) for name in names}

    def statistics(self, power: Tensor, lengths: Tensor) -> Tensor:
        """``[B, count]`` of power spectrograms ``[B, T, F]`` with lengths ``[B]`` in frames."""
        return torch.cat(list(self._grouped(power, lengths, self.groups).values()), 1)

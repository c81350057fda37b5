"""Functionals: our own recipe's model, statistics of each utterance's frames and one linear layer.

On half an hour of speech no recurrence and no convolution that we tried came near it. The statistics are of the kind
that openSMILE's feature sets gather (Eyben et al., "openSMILE", 2010; Schuller et al., "The INTERSPEECH 2013
Computational Paralinguistics Challenge"): spectrum and voice in each frame, and how they are distributed over the
utterance. Training at several speeds keeps the layer from learning the speakers.
"""

import ctypes
import hashlib
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast import checks
from ser_fast.mel import mel_filters
from ser_fast.models import options
from ser_fast.models.masking import frame_mask, full_lengths, standardize
from ser_fast.models.statistics import distribution, moments, slopes, trend
from ser_fast.power_spectrogram import PowerSpectrogram

FLOOR = 1e-8  # of a mel's power, some 90 dB below a loud voice
PITCH = (60.0, 600.0)  # hertz; the lags of the correlogram are evenly spaced in its logarithm
VOICE_BAND = 2000.0  # hertz, below which harmonics are looked for
VOICED = 0.6  # of a frame's power that repeats with the period
QUIET = math.log(1e-4)  # of the loudest frame's power; what lies below is no voice
LEAP = 0.3  # octaves from frame to frame that no voice moves
ROWS = 8  # at a time, whose spectrograms stay in the cache where those of a batch would not
KEPT_BYTES = 1 << 28  # of statistics that were seen, about those of 30 000 utterances
LOWEST = 50.0  # hertz, where the shape of the spectrum begins
FAR = 5.0  # standard deviations
SHORTER = 0.02  # correlation by which the shortest lag goes before the longest

# Of every model in the process, for the folds of a cross-validation share their waves.
_SEEN: dict[bytes, Tensor] = {}


class Functionals(nn.Module):
    """Waveforms to logits by statistics over frames → batch normalisation → dropout → one linear layer.

    In each frame, from one power spectrogram P: the logarithm of ``n_mels`` mels, standardised over the utterance;
    the first ``n_cepstra`` coefficients of its cosine transform; and the correlogram, the frame's autocorrelation
    r(τ) = Σ_k P_k cos(2π f_k τ) over r(0) and over the window's own, at ``n_lags`` lags. Its maximum over the lags
    is the voicing, and 1/τ there the pitch; a frame whose voicing is above 0.6 is voiced.

    The spectrum's shape, also in each frame, above 50 Hz: centroid and spread, the frequencies below which a quarter,
    half, three quarters and nine tenths of the power lie, flatness (the mean logarithm less the logarithm of the
    mean), the logarithm of the power of 1–5 kHz over that below, of the strongest bin below 0.5 kHz over those of
    0.5–1 and of 1–2 kHz, and the squared distance of the square roots of this and the last frame's spectrum.

    Over the utterance, a distribution being mean, standard deviation and five quantiles: the distributions of mels,
    cepstra, voicing and level, of the shape, and of its changes; over the voiced frames those of mels, their slopes,
    pitch, its steps, and the shape; mean and deviation of the correlogram; deviation and mean size of the changes of
    mels and cepstra; the trends of mels, cepstra, level, voicing and pitch; the mean mels of the first and the last
    third less the middle one's; the share of voiced frames, how often voicing begins or ends, and the logarithm of
    the number of frames.

    Args:
        num_classes: classes, or 1 for a regression.
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
    ):
        super().__init__()
        options.check("Functionals", num_classes, f_max, dropout=dropout)
        for name, value in (("n_mels", n_mels), ("n_cepstra", n_cepstra), ("n_lags", n_lags)):
            options.require(value >= 1, "Functionals", name, value, "at least 1")
        options.require(n_cepstra <= n_mels, "Functionals", "n_cepstra", n_cepstra, f"at most n_mels, {n_mels}")
        longest = sample_rate / PITCH[0]
        options.require(sample_rate >= 10000, "Functionals", "sample_rate", sample_rate, "at least 10000 hertz")
        options.require(n_fft >= win_length + longest, "Functionals", "n_fft", n_fft,
                        f"at least {win_length + longest:.0f}, the frame and the longest period")  # fmt: skip
        self.spectrogram = PowerSpectrogram(sample_rate, n_fft, win_length, hop_length, 0.0, sample_rate / 2,
                                            window_fn=torch.hann_window)  # fmt: skip
        window = self.spectrogram.window.double()
        lags = sample_rate / torch.logspace(*map(math.log10, PITCH), n_lags, dtype=torch.float64)
        filters = mel_filters(n_mels, n_fft, sample_rate, f_min, f_max, dtype=torch.float64)
        level = torch.arange(n_mels, dtype=torch.float64) + 0.5
        cosines = (torch.arange(n_cepstra)[:, None] * level * (math.pi / n_mels)).cos() * math.sqrt(2 / n_mels)
        for name, value in (
            ("filters", filters),  # [F, n_mels]
            ("cosines", cosines.T),  # [n_mels, n_cepstra]
            ("correlation", _correlation(window, n_fft, sample_rate, lags)),  # [F, n_lags]
            ("sums", _sums(n_fft, sample_rate)),  # [F, 5]
            ("pitches", (lags[0] / lags).log2()),  # octaves above the lowest
            ("preference", torch.linspace(0, SHORTER, n_lags)),
        ):
            self.register_buffer(name, value.float().contiguous(), persistent=False)
        self.cut = n_mels, n_cepstra, n_lags, f_min, f_max
        count = self.statistics(torch.zeros(1, 1, n_fft // 2 + 1), torch.ones(1, dtype=torch.long)).shape[1]
        self.normalize = nn.BatchNorm1d(count, affine=False)
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
        norm = self.normalize
        # A single utterance has no variance to be normalised by.
        alone = self.training and len(x) == 1
        x = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps) if alone else norm(x)
        # One statistic far outside does not decide alone.
        logits = self.classifier(self.dropout(x.clamp(-FAR, FAR)))
        return (logits, None) if return_weights else logits

    def _computed(self, wave: Tensor, lengths: Tensor) -> Tensor:
        power, lengths = self.spectrogram(wave, lengths)
        return torch.cat([self.statistics(*few) for few in zip(power.split(ROWS), lengths.split(ROWS))])

    def _remembers(self, wave: Tensor, lengths: Tensor) -> bool:
        """Whether the statistics are those of a wave alone: plain values on a CPU, which no hook changes."""
        front = self.spectrogram
        edited = front.normalize or front._forward_hooks or torch.is_autocast_enabled("cpu")
        plain = not (edited or wave.requires_grad or checks.transforming())
        return plain and wave.device.type == "cpu" and checks.readable(lengths) and checks.readable(wave)

    def _remembered(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """The same row by row, looked up where a row was seen before: a training meets its waves in every epoch.

        A row is computed alone, so that what is remembered does not hang on the batch in which it was met first.
        """
        checks.lengths("Functionals", lengths, wave, *wave.shape)
        front = self.spectrogram
        options = (front.sample_rate, front.n_fft, front.win_length, front.hop_length, self.cut, self.filters.dtype)
        rows = []
        for row, size in zip(wave, lengths.tolist()):
            row = row[: max(size, 1)].contiguous()
            content = ctypes.string_at(row.data_ptr(), size * row.itemsize)
            key = repr((options, row.dtype, size)).encode() + hashlib.blake2b(content, digest_size=16).digest()
            if key not in _SEEN:
                found = self._computed(row[None], torch.tensor([size]))[0]
                if len(_SEEN) * found.nbytes >= KEPT_BYTES:
                    _SEEN.clear()
                _SEEN[key] = found
            rows.append(_SEEN[key])
        return torch.stack(rows)

    def statistics(self, power: Tensor, lengths: Tensor) -> Tensor:
        """``[B, count]`` of power spectrograms ``[B, T, F]`` with lengths ``[B]`` in frames."""
        valid = frame_mask(lengths, power.shape[1])
        mels = standardize((power @ self.filters).clamp(min=FLOOR).log(), lengths)
        spectrum = torch.cat([mels, mels @ self.cosines], 2)
        voicing, pitch, level, correlogram = self._voice(power, valid)
        voiced = valid & (voicing > VOICED) & (level > QUIET)
        shape = self._shape(power)
        frame_wise = torch.cat([spectrum, voicing[..., None], level[..., None]], 2)
        changes, inside = spectrum[:, 2:] - spectrum[:, :-2], valid[:, 2:]
        steps = (pitch[:, 1:] - pitch[:, :-1])[..., None]
        small = voiced[:, 1:] & voiced[:, :-1] & (steps[..., 0].abs() < LEAP)
        first, middle, last = (moments(mels, third)[0] for third in _thirds(lengths, valid))
        turns = (voiced[:, 1:] != voiced[:, :-1]) & valid[:, 1:]
        frames = lengths.clamp(min=1).to(power.dtype)
        return torch.cat(
            [
                distribution(frame_wise, valid),
                distribution(shape, valid),
                distribution(shape[:, 2:] - shape[:, :-2], inside),
                distribution(torch.cat([mels, shape, pitch[..., None]], 2), voiced),
                distribution(slopes(mels), voiced[:, 2:-2] & valid[:, 4:]),
                distribution(steps, small),
                *moments(correlogram, valid),
                moments(changes, inside)[1],
                moments(changes.abs(), inside)[0],
                trend(frame_wise, valid),
                trend(pitch[..., None], voiced),
                first - middle,
                last - middle,
                torch.stack([voiced.sum(1) / frames, turns.sum(1) / frames, frames.log()], 1),
            ],
            1,
        )

    def _voice(self, power: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Voicing, pitch in octaves and level in nepers below the loudest frame, ``[B, T]``, and the correlogram."""
        # Bin 0 is left out: an offset would correlate at every lag.
        band = power[..., 1 : 1 + len(self.correlation)]
        energy = band.sum(2).masked_fill(~valid, 0)
        peak = F.pad(energy, (0, 1)).amax(1, keepdim=True).clamp(min=FLOOR)  # there may be no frame
        correlogram = (band @ self.correlation / (energy + 1e-6 * peak)[..., None]).clamp(-1, 1)
        # The multiples of a period correlate as it does itself; the shortest is meant.
        voicing, lag = (correlogram + self.preference).max(2)
        return voicing, self.pitches[lag], (energy / peak).clamp(min=FLOOR).log(), correlogram

    def _shape(self, power: Tensor) -> Tensor:
        """What the docstring says of each frame's spectrum, ``[B, T, 11]``; frequencies as shares of the highest."""

        def at(hertz: float) -> int:
            return round(hertz * self.spectrogram.n_fft / self.spectrogram.sample_rate)

        def log(x: Tensor) -> Tensor:
            return x.clamp(min=FLOOR).log()

        low = at(LOWEST)
        x = power[..., low:].clamp(min=FLOOR)
        # Total, first and second moment of the frequency, and two bands: one product instead of many passes.
        total, first, second, bass, treble = (x @ self.sums[low:]).unbind(2)
        centroid = first / total
        spread = (second / total - centroid.square()).clamp(min=0).sqrt()
        shares = total[..., None] * torch.tensor([0.25, 0.5, 0.75, 0.9], device=x.device, dtype=x.dtype)
        rolloffs = (torch.searchsorted(x.cumsum(2), shares) + low) / power.shape[2]
        peaks = [log(power[..., at(a) : at(b)].amax(2)) for a, b in ((LOWEST, 500), (500, 1000), (1000, 2000))]
        root = x.sqrt()
        alike = (root[:, 1:] * root[:, :-1]).sum(2) / (total[:, 1:] * total[:, :-1]).sqrt()
        flux = F.pad(2 - 2 * alike, (1, 0))[:, : x.shape[1]]
        flatness = x.log().mean(2) - x.mean(2).log()
        shape = [centroid, spread, flatness, log(treble) - log(bass), peaks[0] - peaks[1], peaks[0] - peaks[2], flux]
        return torch.cat([torch.stack(shape, 2), rolloffs], 2)


def _sums(n_fft: int, sample_rate: int) -> Tensor:
    """``[F, 5]``: ones, each bin's frequency as a share of the highest and its square, the bass, the treble."""
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    hertz, share = bins * sample_rate / n_fft, bins / len(bins)
    bass, treble = ((hertz >= low) & (hertz < high) for low, high in ((0, 1000), (1000, 5000)))
    return torch.stack([torch.ones_like(bins), share, share.square(), bass.double(), treble.double()], 1)


def _thirds(lengths: Tensor, valid: Tensor) -> list[Tensor]:
    """The masks of the first, the middle and the last third of the valid frames."""
    time = torch.arange(valid.shape[1], device=valid.device)
    ends = [(lengths * part // 3)[:, None] for part in range(4)]
    return [valid & (time >= begin) & (time < end) for begin, end in pairwise(ends)]


def _correlation(window: Tensor, n_fft: int, sample_rate: int, lags: Tensor) -> Tensor:
    """``[K, L]`` that takes bins 1 to K of a power spectrum to an autocorrelation as of an unwindowed frame."""
    angles = 2 * math.pi * torch.arange(n_fft, dtype=torch.float64)[:, None] * lags / n_fft
    own = torch.fft.fft(window, n_fft).abs().square()
    own_bins = torch.fft.fftfreq(n_fft, 1 / n_fft, dtype=torch.float64)[:, None] * lags * (2 * math.pi / n_fft)
    correlation = (own[:, None] * own_bins.cos()).sum(0) / own.sum()
    return angles[1 : 1 + int(VOICE_BAND * n_fft / sample_rate)].cos() / correlation

"""What the functionals hear in each frame of a power spectrogram: mels, cepstra, voice, the shape of the spectrum."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.models.masking import frame_mask, standardize
from ser_fast.nn.power_spectrogram import FullPrecision
from ser_fast.ops.mel import mel_filters

FLOOR = 1e-8  # of a mel's power, some 90 dB below a loud voice
PITCH = (60.0, 600.0)  # hertz; the lags of the correlogram are evenly spaced in its logarithm
VOICE_BAND = 2000.0  # hertz, below which harmonics are looked for
VOICED = 0.6  # of a frame's power that repeats with the period
QUIET = math.log(1e-4)  # of the loudest frame's power; what lies below is no voice
LOWEST = 50.0  # hertz, where the shape of the spectrum begins
SHORTER = 0.02  # correlation by which the shortest lag goes before the longest


class Frames(NamedTuple):
    """Descriptors of each frame.

    ``lengths`` ``[B]``; masks ``valid``, ``voiced`` ``[B, T]``; ``mels`` ``[B, T, n_mels]``; ``cepstra`` ``[B, T,
    n_cepstra]``; ``voicing``, ``pitch`` (octaves above the lowest) and ``level`` (logarithm of the power over the
    loudest frame's) ``[B, T, 1]``; ``correlogram`` ``[B, T, n_lags]``; ``shape`` ``[B, T, 11]``.
    """

    lengths: Tensor
    valid: Tensor
    voiced: Tensor
    mels: Tensor
    cepstra: Tensor
    voicing: Tensor
    pitch: Tensor
    level: Tensor
    correlogram: Tensor
    shape: Tensor


class Descriptors(FullPrecision):
    """Power spectrograms of windowed frames to their :class:`Frames`; :class:`Functionals` says what each is."""

    def __init__(
        self, window: Tensor, n_fft: int, sample_rate: int, n_mels: int, n_cepstra: int, n_lags: int, f_min: float,
        f_max: float,
    ):  # fmt: skip
        super().__init__()
        self.n_fft, self.sample_rate = n_fft, sample_rate
        lags = sample_rate / torch.logspace(*map(math.log10, PITCH), n_lags, dtype=torch.float64)
        level = torch.arange(n_mels, dtype=torch.float64) + 0.5
        cosines = (torch.arange(n_cepstra)[:, None] * level * (math.pi / n_mels)).cos() * math.sqrt(2 / n_mels)
        for name, value in (
            ("filters", mel_filters(n_mels, n_fft, sample_rate, f_min, f_max, dtype=torch.float64)),  # [F, n_mels]
            ("cosines", cosines.T),  # [n_mels, n_cepstra]
            ("correlation", _correlation(window.double(), n_fft, sample_rate, lags)),  # [F, n_lags]
            ("sums", _sums(n_fft, sample_rate)),  # [F, 5]
            ("pitches", (lags[0] / lags).log2()),
            ("preference", torch.linspace(0, SHORTER, n_lags)),
        ):
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, power: Tensor, lengths: Tensor) -> Frames:
        """Descriptors of power spectrograms ``[B, T, F]`` with lengths ``[B]`` in frames."""
        valid = frame_mask(lengths, power.shape[1])
        mels = standardize((power @ self.filters).clamp(min=FLOOR).log(), lengths)
        voicing, pitch, level, correlogram = self._voice(power, valid)
        voiced = valid & (voicing > VOICED) & (level > QUIET)
        voice = (x[..., None] for x in (voicing, pitch, level))
        return Frames(lengths, valid, voiced, mels, mels @ self.cosines, *voice, correlogram, self._shape(power))

    def _voice(self, power: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Voicing, pitch and level ``[B, T]``, and the correlogram."""
        # Bin 0 is left out: an offset would correlate at every lag.
        band = power[..., 1 : 1 + len(self.correlation)]
        energy = band.sum(2).masked_fill(~valid, 0)
        peak = F.pad(energy, (0, 1)).amax(1, keepdim=True).clamp(min=FLOOR)  # there may be no frame
        correlogram = (band @ self.correlation / (energy + 1e-6 * peak)[..., None]).clamp(-1, 1)
        # The multiples of a period correlate as it does itself; the shortest is meant.
        voicing, lag = (correlogram + self.preference).max(2)
        return voicing, self.pitches[lag], (energy / peak).clamp(min=FLOOR).log(), correlogram

    def _shape(self, power: Tensor) -> Tensor:
        """``[B, T, 11]``; frequencies as shares of the highest."""

        def at(hertz: float) -> int:
            return round(hertz * self.n_fft / self.sample_rate)

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


def _correlation(window: Tensor, n_fft: int, sample_rate: int, lags: Tensor) -> Tensor:
    """``[K, L]`` that takes bins 1 to K of a power spectrum to an autocorrelation as of an unwindowed frame."""
    angles = 2 * math.pi * torch.arange(n_fft, dtype=torch.float64)[:, None] * lags / n_fft
    own = torch.fft.fft(window, n_fft).abs().square()
    own_bins = torch.fft.fftfreq(n_fft, 1 / n_fft, dtype=torch.float64)[:, None] * lags * (2 * math.pi / n_fft)
    correlation = (own[:, None] * own_bins.cos()).sum(0) / own.sum()
    return angles[1 : 1 + int(VOICE_BAND * n_fft / sample_rate)].cos() / correlation

"""Frame descriptors of a power spectrogram: mels, cepstra, voicing, pitch, level and spectral shape."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast._require import require
from ser_fast.nn.power_spectrogram import Constants, PowerSpectrogram
from ser_fast.ops.gray_deltas import standardize
from ser_fast.ops.lengths import frame_mask
from ser_fast.ops.mel import mel_filters

FLOOR = 1e-8  # lower bound of a power before its logarithm, about 90 dB below a loud voice
PITCH = (60.0, 600.0)  # hertz; range of the correlogram's lags, which are log-spaced
VOICE_BAND = 2000.0  # hertz; upper limit of the band that the correlogram uses
VOICED = 0.6  # voicing above which a frame is voiced
QUIET = math.log(1e-4)  # level, relative to the loudest frame, below which no frame is voiced: -40 dB
LOWEST = 50.0  # hertz; lower limit of the spectral shape
SHAPE = 11  # values of the spectral shape of a frame
SHORTER = 0.02  # correlation added to the shortest lag, decreasing to 0 at the longest


class Frames(NamedTuple):
    """Descriptors of each frame, defined in the docstring of :class:`Functionals`."""

    lengths: Tensor  # [B], valid frames
    valid: Tensor  # [B, T], bool
    voiced: Tensor  # [B, T], bool
    mels: Tensor  # [B, T, n_mels], standardised log power
    cepstra: Tensor  # [B, T, n_cepstra]
    voicing: Tensor  # [B, T, 1], maximum of the correlogram
    pitch: Tensor  # [B, T, 1], octaves above PITCH[0]
    level: Tensor  # [B, T, 1], log power relative to the loudest frame
    correlogram: Tensor  # [B, T, n_lags], in -1..1
    shape: Tensor  # [B, T, SHAPE]


class Descriptors(Constants):
    """Compute the :class:`Frames` of power spectrograms.

    Args:
        window: analysis window ``[win_length]`` of the spectrogram, on the CPU.
        n_fft: DFT length, in samples.
        sample_rate: sample rate, in hertz.
        n_mels: mel bands.
        n_cepstra: cepstral coefficients.
        n_lags: lags of the correlogram.
        f_min: lower edge of the lowest mel band, in hertz.
        f_max: upper edge of the highest mel band, in hertz.

    Example:
        >>> describe = Descriptors(torch.hann_window(640), 1024, 16000, 64, 20, 64, 50.0, 8000.0)
        >>> frames = describe(torch.rand(2, 10, 513), torch.tensor([10, 7]))
        >>> frames.mels.shape, frames.pitch.shape
        (torch.Size([2, 10, 64]), torch.Size([2, 10, 1]))
    """

    def __init__(
        self, window: Tensor, n_fft: int, sample_rate: int, n_mels: int, n_cepstra: int, n_lags: int, f_min: float,
        f_max: float,
    ):  # fmt: skip
        super().__init__()
        self.n_fft, self.sample_rate = n_fft, sample_rate
        with torch.device("cpu"):
            lags = sample_rate / torch.logspace(*map(math.log10, PITCH), n_lags, dtype=torch.float64)
            level = torch.arange(n_mels, dtype=torch.float64) + 0.5
            cosines = (torch.arange(n_cepstra)[:, None] * level * (math.pi / n_mels)).cos() * math.sqrt(2 / n_mels)
            constants = {
                "filters": mel_filters(n_mels, n_fft, sample_rate, f_min, f_max, dtype=torch.float64),  # [F, n_mels]
                "cosines": cosines.T,  # [n_mels, n_cepstra]
                "correlation": _correlation(window.double(), n_fft, sample_rate, lags),  # [F, n_lags]
                "sums": _sums(n_fft, sample_rate),  # [F, 5]
                "pitches": (lags[0] / lags).log2(),
                "preference": torch.linspace(0, SHORTER, n_lags),
            }
        for name, value in constants.items():
            self.register_constant(name, value.float().contiguous(), persistent=False)

    def forward(self, power: Tensor, lengths: Tensor) -> Frames:
        """Return the descriptors of power spectrograms ``[B, T, n_fft / 2 + 1]`` with lengths ``[B]`` in frames.

        Under autocast the products stay in the dtype of the filters, whose range float16 lacks.
        """
        power = power.to(self.filters.dtype)
        with torch.autocast("cpu" if power.is_meta else power.device.type, enabled=False):
            return self._describe(power, lengths)

    def _describe(self, power: Tensor, lengths: Tensor) -> Frames:
        valid = frame_mask(lengths, power.shape[1])
        mels = standardize((power @ self.filters).clamp(min=FLOOR).log(), lengths)
        voicing, pitch, level, correlogram = self._voice(power, valid)
        voiced = valid & (voicing > VOICED) & (level > QUIET)
        voice = (x[..., None] for x in (voicing, pitch, level))
        return Frames(lengths, valid, voiced, mels, mels @ self.cosines, *voice, correlogram, self._shape(power))

    def _voice(self, power: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return voicing, pitch and level ``[B, T]``, and the correlogram ``[B, T, n_lags]``."""
        # Without bin 0: a constant offset would correlate at every lag.
        band = power[..., 1 : 1 + len(self.correlation)]
        energy = band.sum(2).masked_fill(~valid, 0)
        peak = F.pad(energy, (0, 1)).amax(1, keepdim=True).clamp(min=FLOOR)  # T may be 0
        correlogram = (band @ self.correlation / (energy + 1e-6 * peak)[..., None]).clamp(-1, 1)
        # Multiples of the period correlate as well as the period; prefer the shortest lag.
        voicing, lag = (correlogram + self.preference).max(2)
        return voicing, self.pitches[lag], (energy / peak).clamp(min=FLOOR).log(), correlogram

    def _shape(self, power: Tensor) -> Tensor:
        """Return the spectral shape ``[B, T, 11]``; frequencies are fractions of the Nyquist frequency.

        Centroid, spread, flatness, treble - bass, peak differences (2), flux, roll-offs at 25, 50, 75 and 90 %.
        """

        def at(hertz: float) -> int:
            return round(hertz * self.n_fft / self.sample_rate)

        def log(x: Tensor) -> Tensor:
            return x.clamp(min=FLOOR).log()

        low = at(LOWEST)
        x = power[..., low:].clamp(min=FLOOR)
        # Power, its first and second moment over frequency, and two bands, in one matrix product.
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


def front_end(
    model: str, sample_rate: int, n_fft: int, win_length: int, hop_length: int, n_mels: int, n_cepstra: int,
    n_lags: int, f_min: float, f_max: float,
) -> tuple[PowerSpectrogram, Descriptors]:  # fmt: skip
    """Return the power spectrogram of a model and the descriptors of its frames, after a check of the options.

    Args:
        model: name for error messages; the other arguments are those of the model.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> spectrogram, describe = front_end("Functionals", 16000, 1024, 640, 320, 64, 20, 64, 50.0, 8000.0)
        >>> describe(*spectrogram(torch.randn(1, 16000), torch.tensor([16000]))).cepstra.shape
        torch.Size([1, 49, 20])
    """
    for name, value in (("n_mels", n_mels), ("n_cepstra", n_cepstra), ("n_lags", n_lags)):
        require(value >= 1, f"{model}: {name} is {value!r}", "at least 1")
    require(n_cepstra <= n_mels, f"{model}: n_cepstra is {n_cepstra!r}", f"at most n_mels, {n_mels}")
    require(sample_rate >= 10000, f"{model}: sample_rate is {sample_rate!r}", "at least 10000 hertz")
    shortest = win_length + sample_rate / PITCH[0]
    allowed = f"at least {shortest:.0f}, the frame and the longest period"
    require(n_fft >= shortest, f"{model}: n_fft is {n_fft!r}", allowed)
    spectrogram = PowerSpectrogram(
        sample_rate, n_fft, win_length=win_length, hop_length=hop_length, f_max=sample_rate / 2,
        window_fn=torch.hann_window,
    )  # fmt: skip
    window = torch.hann_window(win_length, device="cpu")
    return spectrogram, Descriptors(window, n_fft, sample_rate, n_mels, n_cepstra, n_lags, f_min, f_max)


def _sums(n_fft: int, sample_rate: int) -> Tensor:
    """Return weights ``[F, 5]``: 1, the bin's fraction of the Nyquist frequency, its square, 0-1 kHz, 1-5 kHz."""
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    hertz, share = bins * sample_rate / n_fft, bins / len(bins)
    bass, treble = ((hertz >= low) & (hertz < high) for low, high in ((0, 1000), (1000, 5000)))
    return torch.stack([torch.ones_like(bins), share, share.square(), bass.double(), treble.double()], 1)


def _correlation(window: Tensor, n_fft: int, sample_rate: int, lags: Tensor) -> Tensor:
    """Return ``[K, L]``: maps power bins 1..K to the autocorrelation at L lags, divided by that of the window."""
    angles = 2 * math.pi * torch.arange(n_fft, dtype=torch.float64)[:, None] * lags / n_fft
    own = torch.fft.fft(window, n_fft).abs().square()
    own_bins = torch.fft.fftfreq(n_fft, 1 / n_fft, dtype=torch.float64)[:, None] * lags * (2 * math.pi / n_fft)
    correlation = (own[:, None] * own_bins.cos()).sum(0) / own.sum()
    return angles[1 : 1 + int(VOICE_BAND * n_fft / sample_rate)].cos() / correlation

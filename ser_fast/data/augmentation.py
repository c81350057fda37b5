"""Augmentation of training utterances: speed, noise, masks and mixup, drawn from torch's global generators."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from ser_fast._require import require
from ser_fast.data.extras import import_extra
from ser_fast.ops.lengths import frame_mask

# Limit of an Augmenter's cache of resampled utterances: 1 GiB is about 4.6 hours at 16 kHz.
KEPT_BYTES = 1 << 30


@dataclass
class Augmentation:
    """Options of the augmentation; the defaults change nothing.

    Speed perturbation follows Ko et al., "Audio augmentation for speech recognition" (2015), the masks Park et al.,
    "SpecAugment" (2019), without time warping, and mixup Zhang et al., "mixup: beyond empirical risk minimization"
    (2018), applied to waveforms.

    Args:
        speeds: factors in 0.5..2, one of which is drawn for every utterance; tempo and pitch change together.
        snr: lowest and highest signal-to-noise ratio in dB, relative to the mean power of the utterance.
        noise_share: share of the utterances that get noise, in 0..1; half of them white noise, half of them pink.
        time_masks: number of masks over time in every utterance.
        time_mask: longest mask over time, in seconds.
        freq_masks: number of masks over frequency in every utterance.
        freq_mask: widest mask over frequency, as a share of the bins.
        mixup: alpha of the Beta distribution of the mixing weights; 0 is no mixing.

    Raises:
        ValueError: a value is out of range.
    """

    speeds: list[float] = field(default_factory=list)
    snr: list[float] | None = None
    noise_share: float = 0.5
    time_masks: int = 0
    time_mask: float = 0.3
    freq_masks: int = 0
    freq_mask: float = 0.15
    mixup: float = 0.0

    def __post_init__(self):
        ratios = [-100.0, 100.0] if self.snr is None else self.snr
        for name, good, allowed in (
            ("speeds", all(0.5 <= speed <= 2 for speed in self.speeds), "factors in 0.5..2"),
            ("snr", len(ratios) == 2 and -100 <= ratios[0] <= ratios[1] <= 100, "two in order within -100..100 dB"),
            ("noise_share", 0 <= self.noise_share <= 1, "in 0..1"),
            ("time_masks", self.time_masks >= 0, "at least 0"),
            ("time_mask", 0 < self.time_mask < math.inf, "above 0 and finite"),
            ("freq_masks", self.freq_masks >= 0, "at least 0"),
            ("freq_mask", 0 < self.freq_mask <= 1, "above 0 and at most 1"),
            ("mixup", self.mixup == 0 or 0.001 <= self.mixup <= 1000, "0 or in 0.001..1000"),
        ):
            require(good, f"{name} is {getattr(self, name)}", allowed)


class Augmenter:
    """Applies an :class:`Augmentation` to the batches of a training run.

    :meth:`waves` changes speeds and adds noise, :meth:`mix` mixes pairs of utterances; the masks of a spectrogram are
    a module of their own, :class:`SpecAugment`. All random numbers come from torch's global generators: the CPU's for
    :meth:`waves`, that of the batch's device for :meth:`mix`. Up to 1 GiB of resampled utterances is cached.

    Args:
        augmentation: the options.

    Raises:
        ImportError: a speed other than 1 needs soxr, which is not installed.
    """

    def __init__(self, augmentation: Augmentation):
        self.augmentation = augmentation
        if any(speed != 1 for speed in augmentation.speeds):
            import_extra("soxr", "changing the speed")  # fail now and not in the first epoch
        self._kept: dict[tuple[int, float], Tensor] = {}
        self._kept_bytes = 0

    def waves(self, waves: Sequence[Tensor], keys: Sequence[int]) -> list[Tensor]:
        """Return utterances at drawn speeds, some of them with noise.

        Args:
            waves: float32 ``[n]`` each, on the CPU; they are not modified.
            keys: identifies each utterance, such as its index in the dataset.

        Returns:
            float32 ``[n / speed]`` each, up to rounding.
        """
        options = self.augmentation
        waves = [self._at_speed(*given) for given in zip(waves, keys, self.speeds(len(waves)))]
        if options.snr:
            low, high = options.snr
            noisy, ratio, pink = torch.rand(3, len(waves)).unbind()
            draws = zip(noisy < options.noise_share, (low + (high - low) * ratio).tolist(), pink < 0.5)
            waves = [add_noise(wave, *draw) if noisy else wave for wave, (noisy, *draw) in zip(waves, draws)]
        return waves

    def speeds(self, count: int) -> list[float]:
        """Draw a speed for each of ``count`` utterances; all are 1, and nothing is drawn, without options."""
        speeds = self.augmentation.speeds
        if not speeds:
            return [1.0] * count
        return [speeds[i] for i in torch.randint(len(speeds), (count,)).tolist()]

    def mix(self, wave: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return λ x + (1 − λ) x' for every row x and a row x' of the same batch, and the same of the targets.

        λ ~ Beta(α, α) is drawn for every row, x' by a random permutation of the rows.

        Args:
            wave: ``[B, N]``, zero past the lengths.
            lengths: ``[B]`` in samples.
            targets: float ``[B, C]``.

        Returns:
            The mixed wave, the longer of the two lengths of each row, and the mixed targets.
        """
        if not self.augmentation.mixup:
            return wave, lengths, targets
        alpha = wave.new_full((len(wave), 1), self.augmentation.mixup)
        weight = Beta(alpha, alpha, validate_args=False).sample()
        other = torch.randperm(len(wave), device=wave.device)
        wave, targets = (weight * values + (1 - weight) * values[other] for values in (wave, targets))
        return wave, lengths.maximum(lengths[other]), targets

    def _at_speed(self, wave: Tensor, key: int, speed: float) -> Tensor:
        if (key, speed) in self._kept:
            return self._kept[key, speed]
        changed = change_speed(wave, speed)
        if changed is not wave and self._kept_bytes + changed.nbytes <= KEPT_BYTES:
            self._kept[key, speed] = changed
            self._kept_bytes += changed.nbytes
        return changed


class SpecAugment(nn.Module):
    """Hide random frames and bins of spectrograms in training mode; return them unchanged in evaluation mode.

    Each mask has a width and a place of its own. All masks over time together hide at most half of a row's frames,
    those over frequency at most half of the bins. A hidden pixel takes the row's mean over its valid pixels; frames
    past a row's length stay as they are. The random numbers come from the generator of the spectrogram's device.

    Args:
        time_masks: masks over time in each row.
        longest_time_mask: largest width of a mask over time, in frames.
        freq_masks: masks over frequency in each row.
        freq_mask: largest width of a mask over frequency, as a share of the bins, in 0..1.
    """

    def __init__(self, time_masks: int, longest_time_mask: int, freq_masks: int, freq_mask: float):
        super().__init__()
        self.time_masks, self.longest_time_mask = time_masks, longest_time_mask
        self.freq_masks, self.freq_mask = freq_masks, freq_mask

    def forward(self, spec: Tensor, lengths: Tensor) -> Tensor:
        """Return the masked spectrograms.

        Args:
            spec: ``[B, T, F]``, zero past the lengths.
            lengths: ``[B]`` valid frames of each row.

        Returns:
            ``[B, T, F]``; ``spec`` itself in evaluation mode.
        """
        if not self.training or not spec.numel():
            return spec
        bins = spec.shape[2]
        times = masks(lengths, spec.shape[1], self.time_masks, self.longest_time_mask)
        freqs = masks(torch.full_like(lengths, bins), bins, self.freq_masks, int(self.freq_mask * bins))
        valid = frame_mask(lengths, spec.shape[1])
        hidden = (times[:, :, None] | freqs[:, None]) & valid[:, :, None]
        mean = spec.sum((1, 2)) / (lengths * bins).clamp(min=1)
        return torch.where(hidden, mean[:, None, None], spec)


def change_speed(wave: Tensor, speed: float) -> Tensor:
    """Return the float32 wave ``[n]`` resampled to ``[n / speed]``, at least one sample unless it is empty."""
    if speed == 1:
        return wave
    soxr = import_extra("soxr", "changing the speed")
    # soxr's lower qualities are not faster.
    return torch.from_numpy(soxr.resample(wave.numpy(), speed, 1, quality="HQ"))


def add_noise(wave: Tensor, snr: float, pink: bool) -> Tensor:
    """Return the wave ``[n]`` plus white or pink noise at a signal-to-noise ratio in dB; silence stays silent."""
    noise = _pink_noise(len(wave)) if pink else torch.randn(len(wave))
    power, noise_power = wave.square().mean(), noise.square().mean()
    ratio = power / noise_power.clamp(min=torch.finfo(noise.dtype).tiny)
    return wave + noise * (ratio.sqrt() * 10 ** (-snr / 20))


def masks(sizes: Tensor, positions: int, count: int, widest: int) -> Tensor:
    """Return random masks as bool ``[B, positions]``, True where a position is hidden.

    Args:
        sizes: ``[B]`` valid positions of each row; masks lie within them.
        positions: positions of each row.
        count: masks of each row.
        widest: widths are drawn uniformly from 0 to ``widest``, at most ``size // (2 count)``.
    """
    sizes = sizes[:, None].expand(-1, count)
    widths = _draw((sizes // max(1, 2 * count)).clamp(max=widest))
    starts = _draw(sizes - widths)
    position = torch.arange(positions, device=sizes.device)[:, None, None]
    return ((position >= starts) & (position < starts + widths)).any(2).T


def _draw(highest: Tensor) -> Tensor:
    """Draw integers, uniform from 0 to ``highest``, both included."""
    return (torch.rand(highest.shape, device=highest.device) * (highest + 1)).long()


def _pink_noise(samples: int) -> Tensor:
    """Return noise whose power falls as 1 / frequency."""
    size = 1 << samples.bit_length()  # a power of two, for a fast FFT
    frequency = torch.arange(size // 2 + 1).clamp(min=1)
    return torch.fft.irfft(torch.randn(len(frequency), dtype=torch.complex64) * frequency.rsqrt(), n=size)[:samples]

"""Mel spectrogram: triangular filters on the power spectrogram, and their logarithm."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops.mel import mel_filters, require
from ser_fast.ops.power_spectrogram import FLOOR, power_spectrogram


class MelSpectrogram(PowerSpectrogram):
    """The power spectrogram through :func:`mel_filters`, its logarithm and normalisation.

    mel[t, m] = Σ_k P[t, k] W[k, m] with P of :func:`ser_fast.functional.power_spectrogram`, then log(max(mel, floor))
    with ``log``, then (· − mean) / std once :meth:`set_statistics` has set these, ``[n_mels]`` each. The defaults are
    25 ms Hann frames every 10 ms and 80 filters. With ``log=False`` it equals ``librosa.feature.melspectrogram``
    with ``htk=True, norm=None, pad_mode="reflect"``, transposed.

    Only the bins that lie in a filter are computed. Half modules and autocast leave the filters and the product in
    float32, as they leave the spectrogram, for powers overflow float16. The product obeys
    ``torch.set_float32_matmul_precision``, whose default is float32: as TF32 ("high" on CUDA) it errs by up to 0.1 %.

    Args:
        sample_rate: hertz.
        n_fft, win_length, hop_length: samples.
        f_min, f_max, n_mels, mel_scale, norm: as in :func:`mel_filters`.
        window_fn, wkwargs: makes the window, called as ``window_fn(win_length, **wkwargs)``.
        center, pad_mode: as in :func:`ser_fast.functional.power_spectrogram`.
        log: natural logarithm of the mels, floored at ``floor``.

    Raises:
        ValueError: an argument that does not fit, by name.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        f_min: float = 0.0,
        f_max: float | None = None,
        n_mels: int = 80,
        window_fn: Callable[..., Tensor] = torch.hann_window,
        wkwargs: dict | None = None,
        center: bool = True,
        pad_mode: str = "reflect",
        mel_scale: Literal["htk", "slaney"] = "htk",
        norm: Literal["slaney"] | None = None,
        log: bool = True,
        floor: float = FLOOR,
    ):
        tiny = torch.finfo(torch.float32).tiny
        require(not log or floor >= tiny, "MelSpectrogram", "floor", floor, f"at least {tiny:.3g}, for a logarithm")
        shape = {"mel_scale": mel_scale, "norm": norm}
        filters = mel_filters(n_mels, n_fft, sample_rate, f_min, f_max, **shape, dtype=torch.float64)
        touched = filters.any(1).nonzero()
        low, high = (min(int(touched[end]) * sample_rate / n_fft, sample_rate / 2) for end in (0, -1))
        super().__init__(
            sample_rate, n_fft, win_length, hop_length, low, high, window_fn, wkwargs, center, pad_mode, log,
            floor=floor,
        )  # fmt: skip
        self.n_mels = n_mels
        self.mel_scale = mel_scale
        self.norm = norm
        self.register_buffer("filters", filters[slice(*self.bins)].to(self.window))
        self.mean, self.std = torch.zeros(n_mels), torch.ones(n_mels)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_mels={self.n_mels}, mel_scale={self.mel_scale}, norm={self.norm}"

    def _spectra(self, wave: Tensor, lengths: Tensor | None, center: bool) -> Tensor:
        power = power_spectrogram(
            wave, self.window, self.n_fft, self.hop_length, self.bins, lengths, center=center, pad_mode=self.pad_mode
        )
        with torch.autocast("cpu" if power.is_meta else power.device.type, enabled=False):
            mel = power @ self.filters
        if self.log:
            mel = mel.clamp(min=self.floor).log()
        if self.normalize:
            mel = (mel - self.mean) / self.std
        if lengths is None:
            return mel
        past = torch.arange(mel.shape[1], device=mel.device) >= self.frame_lengths(lengths)[:, None]
        return mel.masked_fill(past[..., None], 0)

"""The mel spectrogram as a module."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops.lengths import mask_past
from ser_fast.ops.mel import mel_filters
from ser_fast.ops.power_spectrogram import FLOOR, power_spectrogram


class MelSpectrogram(PowerSpectrogram):
    """Mel spectrogram of a padded batch, time-major.

    The power spectrogram times :func:`ser_fast.functional.mel_filters`:
    mel[t, m] = Σ_k P[t, k] W[k, m] with P of :func:`ser_fast.functional.power_spectrogram`, then log(max(mel, floor))
    with ``log``, then (· − mean) / std once :meth:`set_statistics` has set these, ``[n_mels]`` each. The defaults are
    25 ms Hann frames every 10 ms and 80 filters. With ``log=False`` equivalent to ``librosa.feature.melspectrogram``
    with ``htk=True, norm=None, pad_mode="reflect"``, transposed.

    Only the bins inside a filter are computed. Filters and product stay in float32 in half modules and under
    autocast, like the spectrogram, since powers overflow float16. The product uses
    the precision of ``torch.set_float32_matmul_precision``, whose default is float32; as TF32 ("high" on CUDA) its
    error is up to 0.1 %.

    Args:
        sample_rate: hertz.
        n_fft: size of the DFT in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_min, f_max: hertz, where the first filter begins and the last one ends; f_max is half the sample rate if
            None.
        n_mels: number of filters.
        window_fn, wkwargs: make the window: ``window_fn(win_length, **wkwargs)``.
        center, pad_mode: as in :class:`PowerSpectrogram`.
        mel_scale: "htk" or "slaney", see :func:`ser_fast.functional.mel_filters`.
        norm: None or "slaney", see there.
        log: natural logarithm of the mels.
        floor: smallest mel before the logarithm.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; mels ``[B, T, n_mels]``, lengths ``[B]`` in frames.

    Raises:
        ValueError: if an argument is out of range or no bin lies between f_min and f_max.

    Example:
        >>> import torch
        >>> MelSpectrogram()(torch.randn(2, 16000)).shape
        torch.Size([2, 101, 80])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 512,
        *,
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
        shape = {"mel_scale": mel_scale, "norm": norm}
        filters = mel_filters(n_mels, n_fft, sample_rate, f_min, f_max, **shape, dtype=torch.float64)
        touched = filters.any(1).nonzero()
        low, high = (min(int(touched[end]) * sample_rate / n_fft, sample_rate / 2) for end in (0, -1))
        super().__init__(
            sample_rate, n_fft, win_length=win_length, hop_length=hop_length, f_min=low, f_max=high,
            window_fn=window_fn, wkwargs=wkwargs, center=center, pad_mode=pad_mode, log=log, floor=floor,
        )  # fmt: skip
        self.n_mels = n_mels
        self.mel_scale = mel_scale
        self.norm = norm
        self.register_constant("filters", filters[slice(*self.bins)].to(self.window.dtype))
        self.register_constant("mean", torch.zeros(n_mels, device="cpu"))
        self.register_constant("std", torch.ones(n_mels, device="cpu"))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_mels={self.n_mels}, mel_scale={self.mel_scale}, norm={self.norm}"

    def _spectra(self, wave: Tensor, lengths: Tensor | None, center: bool) -> Tensor:
        window, filters, mean, std = self._for(wave, self.window, self.filters, self.mean, self.std)
        power = power_spectrogram(
            wave, window, self.n_fft, self.hop_length, self.bins, lengths, center=center, pad_mode=self.pad_mode
        )
        with torch.autocast("cpu" if power.is_meta else power.device.type, enabled=False):
            mel = power @ filters
        if self.log:
            mel = mel.clamp(min=self.floor).log()
        if self.normalize:
            mel = (mel - mean) / std
        return mask_past(mel, None if lengths is None else self.frame_lengths(lengths))

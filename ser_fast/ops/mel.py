"""Triangular mel filters."""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from ser_fast._require import require

MEL_SCALES = ("htk", "slaney")
NORMS = (None, "slaney")


def _mel(hertz: float, mel_scale: str) -> float:
    if mel_scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)


def _hertz(mels: Tensor, mel_scale: str) -> Tensor:
    if mel_scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    return torch.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))


def mel_filters(
    n_mels: int,
    n_fft: int,
    sample_rate: float,
    f_min: float = 0.0,
    f_max: float | None = None,
    *,
    mel_scale: Literal["htk", "slaney"] = "htk",
    norm: Literal["slaney"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return triangular filters, evenly spaced in mels: a power spectrogram times them is a mel spectrogram.

    With c_0 .. c_{M+1} the frequencies evenly spaced in mels from f_min to f_max, and f_k = k sample_rate / n_fft,
    W[k, m] = max(0, min((f_k − c_m) / (c_{m+1} − c_m), (c_{m+2} − f_k) / (c_{m+2} − c_{m+1}))). The mels of f hertz:

    - "htk": 2595 log10(1 + f / 700) (Young et al., The HTK Book);
    - "slaney": 3 f / 200 below 1000 Hz, 15 + 27 log(f / 1000) / log 6.4 from there on (Slaney, Auditory Toolbox,
      Interval Research Corporation, technical report 1998-010).

    Equals ``librosa.filters.mel(sr=sample_rate, ...).T``, and up to its float32 arithmetic
    ``torchaudio.functional.melscale_fbanks`` where n_fft and the sample rate are even.

    Args:
        n_mels: number of filters.
        n_fft: size of the DFT in samples.
        sample_rate: hertz.
        f_min, f_max: hertz, where the first filter begins and the last one ends; f_max is half the sample rate if
            None.
        mel_scale: "htk" or "slaney", see above.
        norm: "slaney" divides each filter by its half width in hertz, (c_{m+2} − c_m) / 2, so that its area is 1
            hertz; with None the peak of each filter is 1.
        dtype: dtype of the result; the arithmetic is in float64.

    Shape:
        filters ``[F, n_mels]`` with F = n_fft // 2 + 1.

    Returns:
        The filters, on the CPU.

    Raises:
        ValueError: if an argument is out of range or no bin lies between f_min and f_max.

    Warns:
        UserWarning: if some filters are so narrow that no bin lies in them.

    Example:
        >>> mel_filters(80, 512, 16000).shape
        torch.Size([257, 80])
    """
    op = "mel_filters"
    f_max = sample_rate / 2 if f_max is None else f_max
    for name, value in (("n_mels", n_mels), ("n_fft", n_fft), ("sample_rate", sample_rate)):
        require(value >= 1, f"{op}: {name} is {value!r}", "at least 1")
    within = f"in order within 0..{sample_rate / 2}, and differ"
    require(0 <= f_min < f_max <= sample_rate / 2, f"{op}: f_min, f_max is {(f_min, f_max)}", within)
    require(mel_scale in MEL_SCALES, f"{op}: mel_scale is {mel_scale!r}", "'htk' or 'slaney'")
    require(norm in NORMS, f"{op}: norm is {norm!r}", "None or 'slaney'")
    exact = {"dtype": torch.float64, "device": "cpu"}
    bins = torch.arange(n_fft // 2 + 1, **exact)[:, None] * sample_rate / n_fft
    ends = _mel(f_min, mel_scale), _mel(f_max, mel_scale)
    corners = _hertz(torch.linspace(*ends, n_mels + 2, **exact), mel_scale)
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    filters = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp(min=0)
    if norm == "slaney":
        filters = filters * 2 / (high - low)
    empty = n_mels - int(filters.any(0).sum())
    spacing = f"bins are {sample_rate / n_fft:g} Hz apart"
    if empty == n_mels:
        raise ValueError(f"{op}: no bin lies between f_min = {f_min} and f_max = {f_max} Hz; {spacing}")
    if empty:
        warnings.warn(
            f"{op}: n_mels is {n_mels}, and {empty} of the filters contain no bin: they give 0. "
            f"Use fewer filters or a larger n_fft: {spacing}",
            stacklevel=2,
        )
    return filters.to(dtype)

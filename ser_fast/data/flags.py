"""Signs in a waveform that a prediction from it means little."""

from pathlib import Path

import numpy as np
import torch

from ser_fast.data.audio import largest_sample, loudest

FLAGS = {
    "silent": "no sample exceeds -80 dB of full scale",
    "constant": "all samples are equal to -80 dB of full scale: an offset without sound",
    "cancelled": "the mean of the channels, which is predicted, is 40 dB or more below the channels",
    "clipped": "1 % or more of the samples are at full scale",
    "short": "shorter than one frame of the model, or than half the shortest training utterance",
}

_SILENCE = 1e-4  # -80 dB of full scale
_CANCELLED = 1e-2  # -40 dB
_EDGE = 500  # samples at both ends where resampling makes a constant ring
_FULL_SCALE = 0.99  # resampling moves the tops of clipped waves


def flags(wave: torch.Tensor, path: Path, shortest: float) -> str:
    """Return the keys of ``FLAGS`` that hold, separated by spaces; ``""`` for ordinary audio.

    Args:
        wave: float32 ``[N]``, N at least 1.
        path: the file that it was read from, whose channels are read again if the wave is weak.
        shortest: samples below which a wave is short.
    """
    peak = loudest(wave)
    edge = min(_EDGE, len(wave) // 4)
    samples = wave.numpy()
    inner = samples[edge : len(wave) - edge]
    spread = float(inner.max() - inner.min())
    cancelled = peak < _CANCELLED and peak < _CANCELLED * largest_sample(path)
    silent = peak < _SILENCE and not cancelled
    clipped = peak >= _FULL_SCALE and (np.abs(samples) >= _FULL_SCALE).mean() >= 0.01
    holds = {
        "silent": silent,
        "constant": spread < _SILENCE and not silent and not cancelled,
        "cancelled": cancelled,
        "clipped": clipped,
        "short": len(wave) < shortest,
    }
    return " ".join(name for name in FLAGS if holds[name])

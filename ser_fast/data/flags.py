"""Signs in a waveform that a prediction from it means little."""

from pathlib import Path

import numpy as np
import torch

from ser_fast.data.audio import largest_sample, loudest
from ser_fast.data.sources import Source
from ser_fast.data.voicing import has_voice

FLAGS = {
    "silent": "no sample exceeds -80 dB of full scale (not predicted)",
    "constant": "all samples are equal to -80 dB of full scale: an offset without sound (not predicted)",
    "cancelled": "the mean of the channels, which is predicted, is 40 dB or more below the channels (not predicted)",
    "too_short": "shorter than one frame of the model (not predicted)",
    "no_speech": "no second has voiced sound of changing pitch (not predicted by the model that comes with ser_fast)",
    "clipped": "1 % or more of the samples are at full scale",
    "short": "shorter than half the shortest training utterance",
}
# Audio without content: a model gives it confident numbers that mean nothing, so it gets none.
UNPREDICTED = frozenset({"silent", "constant", "cancelled", "too_short"})
# Not predicted by a checkpoint that says so; others may be trained on whispers or other sounds.
NO_SPEECH = "no_speech"

_SILENCE = 1e-4  # -80 dB of full scale
_CANCELLED = 1e-2  # -40 dB
_EDGE = 500  # samples at both ends where resampling makes a constant ring
_FULL_SCALE = 0.99  # resampling moves the tops of clipped waves


def flags(
    wave: torch.Tensor, path: Path | str | Source | None, sample_rate: int, frame: float = 0.0, shortest: float = 0.0,
    start: float | None = None, end: float | None = None,
) -> str:  # fmt: skip
    """Return the keys of ``FLAGS`` that hold, separated by spaces; ``""`` for ordinary audio.

    Args:
        wave: float32 ``[N]``, N at least 1.
        path: what it was read from, whose channels are read again if the wave is weak; None for a wave in memory.
        sample_rate: of the wave, in hertz.
        frame: samples of one frame of the model, below which a wave is too short; 0 without a model.
        shortest: samples below which a longer wave is short.
        start: where the wave starts in the file, in seconds; None is the beginning.
        end: where it ends, in seconds; None is the end.
    """
    peak = loudest(wave)
    edge = min(_EDGE, len(wave) // 4)
    samples = wave.numpy()
    inner = samples[edge : len(wave) - edge]
    spread = float(inner.max() - inner.min())
    weak = peak < _CANCELLED and path is not None
    cancelled = weak and peak < _CANCELLED * largest_sample(path, start, end)
    silent = peak < _SILENCE and not cancelled
    clipped = peak >= _FULL_SCALE and (np.abs(samples) >= _FULL_SCALE).mean() >= 0.01
    holds = {
        "silent": silent,
        "constant": spread < _SILENCE and not silent and not cancelled,
        "cancelled": cancelled,
        "too_short": len(wave) < frame,
        "clipped": clipped,
        "short": frame <= len(wave) < shortest,
    }
    holds[NO_SPEECH] = not any(holds[name] for name in UNPREDICTED) and not has_voice(samples, sample_rate)
    return " ".join(name for name in FLAGS if holds[name])

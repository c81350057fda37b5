"""Signs in a waveform that a prediction from it means little."""

import numpy as np
import pytest
import soundfile

from ser_fast.data.audio import read_audio
from ser_fast.data.flags import FLAGS, flags

RATE = 8000
TONE = (0.5 * np.sin(np.arange(RATE) * 0.3)).astype(np.float32)
PITCH = np.cumsum(120 + 30 * np.arange(RATE) / RATE) / RATE  # in periods
VOICE = sum(np.sin(2 * np.pi * partial * PITCH) for partial in range(1, 9))
VOICE = (0.5 * VOICE / np.abs(VOICE).max()).astype(np.float32)
NOISE = (0.004 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
WAVES = {
    "voiced": (VOICE, ""),
    "quiet": (0.004 * VOICE, ""),
    "peak": (2 * VOICE * np.linspace(0, 1, RATE, dtype=np.float32), ""),  # at full scale for a few samples only
    "half_cancelled": (np.stack([VOICE, -0.9 * VOICE], 1), ""),
    "noise": (NOISE, "no_speech"),
    "tone": (TONE, "no_speech"),
    "zeros": (0 * TONE, "silent"),
    "last_bit": (np.float32(2**-15) * np.sign(TONE), "silent"),
    "offset": (0 * TONE + 0.3, "constant"),
    "opposite": (np.stack([TONE, -TONE], 1), "cancelled"),
    "opposite_offset": (np.stack([0 * TONE + 0.3, 0 * TONE - 0.3], 1), "cancelled"),
    "nearly_opposite": (np.stack([TONE, -0.99 * TONE], 1), "cancelled"),
    "loud": (np.clip(20 * VOICE, -1, 1), "clipped"),
    "integers": (VOICE * 2**15, "clipped"),
    "square": (np.clip(20 * TONE, -1, 1), "no_speech clipped"),
    "tiny": (TONE[:100], "too_short"),
    "tiny_silence": (0 * TONE[:100], "silent too_short"),
    "brief": (TONE[:1000], "short"),
    "brief_noise": (NOISE[:3000], "no_speech short"),
}


@pytest.mark.parametrize("name", WAVES)
@pytest.mark.parametrize("rate", [RATE, 16000])
def test_flags_name_what_is_wrong(name, rate, tmp_path):
    samples, wanted = WAVES[name]
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, "FLOAT")
    found = flags(read_audio(path, rate), path, rate, frame=0.02 * rate, shortest=0.5 * rate)
    assert found == wanted and set(found.split()) <= FLAGS.keys()

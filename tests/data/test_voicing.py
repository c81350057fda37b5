"""Detection of voiced speech: voices pass, noise, hum and clicks are flagged."""

import numpy as np
import pytest
import soxr

from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.data.voicing import has_voice

RATE, SECONDS = 16000, 10
TIME = np.arange(RATE * SECONDS) / RATE


def noise(slope: float, seed: int) -> np.ndarray:
    """Noise whose power falls by the frequency to the ``slope``, above 20 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(TIME)))
    made = np.fft.irfft(spectrum * np.fft.rfftfreq(len(TIME), 1 / RATE).clip(20) ** (-slope / 2))
    return 0.1 * made / made.std()


def sweep(seconds: float) -> np.ndarray:
    """Sine from 20 to 8000 Hz, exponentially, again and again."""
    return 0.5 * np.sin(2 * np.pi * 20 * seconds / np.log(400) * (400 ** (TIME % seconds / seconds) - 1))


def partials(hertz: float, count: int) -> np.ndarray:
    return sum(0.2 / n * np.sin(2 * np.pi * n * hertz * TIME + n) for n in range(1, count + 1))


def clicks(a_second: int, seed: int) -> np.ndarray:
    random, made = np.random.default_rng(seed), np.zeros(len(TIME))
    made[random.integers(0, len(TIME), a_second * SECONDS)] = random.uniform(-1, 1, a_second * SECONDS)
    return made


SOUNDS = {
    "white": lambda: noise(0, 0),
    "pink": lambda: noise(1, 1),
    "blue": lambda: noise(-1, 2),
    "hum": lambda: partials(50, 1),
    "mains": lambda: partials(50, 11),
    "rectified": lambda: partials(100, 11),
    "hum_at_60": lambda: partials(60, 11) + 0.3,
    "held_note": lambda: partials(220, 8),
    "third": lambda: partials(440, 1) + partials(554.4, 1),
    "sweep": lambda: sweep(10),
    "fast_sweep": lambda: sweep(3),
    "clicks": lambda: clicks(10, 3),
    "offset": lambda: np.full(len(TIME), 0.3),
    "zeros": lambda: np.zeros(len(TIME)),
    "gliding_tone": lambda: np.sin(2 * np.pi * (150 * TIME + 10 * TIME**2)),
}


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("rate", [16000, 8000])
def test_voice_is_not_in_other_sounds(name, rate):
    samples = soxr.resample(SOUNDS[name](), RATE, rate)
    assert not has_voice(samples.astype(np.float32), rate)


@pytest.mark.parametrize("emotion", ["anger", "neutral", "sadness"])
@pytest.mark.parametrize("snr", [None, 10, 0])
def test_voice_is_found_in_noise(emotion, snr):
    voice = synthesize(emotion, 0, 0).numpy()
    if snr is not None:
        scale = np.sqrt(np.square(voice).mean()) * 10 ** (-snr / 20)
        voice = voice + scale * np.random.default_rng(0).standard_normal(len(voice))
    assert has_voice(voice.astype(np.float32), RATE)


def test_voice_is_found_at_any_place_and_level():
    """A second of voice in a minute of noise, and a voice at -60 dB."""
    voice = synthesize("neutral", 1, 0).numpy()
    long = np.tile(noise(0, 4), 6).astype(np.float32) * 0.1
    long[400_000 : 400_000 + len(voice)] += voice
    assert has_voice(long, RATE) and has_voice(1e-3 * voice, RATE)


def test_voice_is_not_judged_in_short_audio():
    white = noise(0, 5).astype(np.float32)
    assert has_voice(white[: RATE // 5 - 1], RATE) and not has_voice(white[: RATE // 5], RATE)
    assert has_voice(white, 3000)

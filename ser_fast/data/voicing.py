"""Search for voice in a waveform: frames that repeat at a pitch, have several partials, and change their pitch.

NumPy alone, so that reading processes may fork.
"""

import functools
import math

import numpy as np

PITCH = (60.0, 600.0)  # hertz
BAND = (80.0, 2000.0)  # hertz; the partials that are searched
FRAME, HOP = 0.04, 0.02  # seconds
PERIODIC = 0.6  # autocorrelation at the pitch period, above which a frame repeats
PURE = 0.9  # share of the band's power in one partial, above which a frame is a pure tone
IN_BAND = 0.02  # share of a frame's power in the band, below which the band holds leakage only
FAINT = 1e-5  # root mean square of a frame, of full scale, below which it is silence: -100 dB
ENOUGH = 5  # voiced frames within a second, which are 0.1 s
STEADY = 0.01  # octaves between the 10th and 90th percentile of the pitch, below which a tone is held by no voice
SHORTEST = 0.2  # seconds; shorter audio is not judged


def has_voice(samples: np.ndarray, sample_rate: int) -> bool:
    """Return whether any second of the audio has the voiced frames of speech.

    A frame of 40 ms is voiced if its autocorrelation within 80..2000 Hz has a peak of 0.6 or more at a pitch of
    60..600 Hz, and no single partial has 90 % of the power there. A second has voice if 5 or more of its 49 frames
    are voiced and their pitch varies by 0.01 octaves or more. Whispers have no voice; melodies and low rumble may
    pass for it.

    Args:
        samples: float ``[N]``; audio below 0.2 s is not judged.
        sample_rate: in hertz, at least 4000; below, the audio is not judged.

    Returns:
        True where the audio has voice or is not judged.

    Example:
        >>> time = np.arange(16000) / 16000
        >>> pitch = 150 * time + 20 * time**2
        >>> voice = sum(np.sin(2 * np.pi * partial * pitch) for partial in range(1, 9))
        >>> noise = np.random.default_rng(0).standard_normal(16000)
        >>> has_voice(voice, 16000), has_voice(noise, 16000)
        (True, False)
    """
    if sample_rate < 2 * BAND[1] or len(samples) < SHORTEST * sample_rate:
        return True
    second, half = sample_rate, sample_rate // 2
    starts = range(0, max(1, len(samples) - half), half)  # a second from each: they overlap by a half
    return any(_voiced(samples[start : start + second], sample_rate) for start in starts)


def _voiced(samples: np.ndarray, sample_rate: int) -> bool:
    """Return whether a second of audio has enough voiced frames of changing pitch."""
    size, hop = round(FRAME * sample_rate), round(HOP * sample_rate)
    if len(samples) < size:
        return False
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    frames = frames[np.square(frames).mean(1) > FAINT**2]
    if len(frames) < ENOUGH:
        return False
    period, periodic, pure = _periods(frames, sample_rate)
    periods = period[(periodic > PERIODIC) & (pure < PURE)]
    if len(periods) < ENOUGH:
        return False
    low, high = np.percentile(periods, [10, 90])
    return math.log2(high / low) >= STEADY


def _periods(frames: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the period of each frame, the autocorrelation there, and the share of the strongest partial.

    The period is in samples of the band, and the autocorrelation 0 where it has no peak or the band holds leakage.
    """
    window, size, lags, bins, own = _constants(frames.shape[1], sample_rate)
    centred = (frames - frames.mean(1, keepdims=True)) * window
    spectrum = np.fft.rfft(centred, size)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    band = np.zeros((len(frames), len(own) // 2 + 1), power.dtype)
    band[:, bins] = power[:, bins]
    correlation = np.fft.irfft(band, len(own))[:, : lags.stop + 1]
    total = np.maximum(correlation[:, :1], np.finfo(correlation.dtype).tiny)
    correlation = correlation / total / own[: lags.stop + 1]
    rows, peak = np.arange(len(frames)), correlation[:, lags].argmax(1) + lags.start
    before, height, after = (correlation[rows, peak + step] for step in (-1, 0, 1))
    bend = before - 2 * height + after
    # Without a peak inside the range, the signal repeats at a shorter period only.
    found = (height >= before) & (height >= after) & (bend < 0)
    found &= band.sum(1) > IN_BAND * power.sum(1)
    period = peak + np.where(found, (before - after) / np.where(found, 2 * bend, 1), 0)  # the top of a parabola
    return period, np.where(found, height, 0), _strongest(power[:, bins], sample_rate / size)


def _strongest(band: np.ndarray, spacing: float) -> np.ndarray:
    """Return the share of the power within 50 Hz of the strongest bin; the bins are ``spacing`` hertz apart."""
    reach = math.ceil(50 / spacing) - 1
    sums = np.pad(band, ((0, 0), (reach + 1, reach))).cumsum(1)
    rows, top = np.arange(len(band)), band.argmax(1)
    around = sums[rows, top + 2 * reach + 1] - sums[rows, top]
    return around / np.maximum(sums[:, -1], np.finfo(band.dtype).tiny)


@functools.lru_cache(4)
def _constants(frame: int, sample_rate: int) -> tuple[np.ndarray, int, slice, slice, np.ndarray]:
    """Return the window, the DFT's length, the lags of the pitch, the bins of the band, the window's correlation.

    Lags and correlation are those of the band at about four times its upper limit as sampling rate.
    """
    size = 1 << math.ceil(math.log2(1.5 * frame))  # the longest lag, 17 ms, does not wrap
    window = np.hanning(frame + 2)[1:-1].astype(np.float32)
    bins = slice(math.ceil(BAND[0] * size / sample_rate), int(BAND[1] * size / sample_rate))
    short = min(size, 1 << math.ceil(math.log2(4 * bins.stop)))
    rate = sample_rate * short / size
    spectrum = np.square(np.abs(np.fft.rfft(window, size)))[: short // 2 + 1]
    own = np.fft.irfft(spectrum, short)
    lags = slice(math.ceil(rate / PITCH[1]), int(rate / PITCH[0]) + 1)
    return window, size, lags, bins, (own / own[0]).astype(np.float32)

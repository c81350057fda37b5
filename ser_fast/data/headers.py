"""Lengths of utterances, and the memory that they take, from the headers of their files."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ser_fast.data.audio import open_audio, read_each, read_utterance, resampled_length
from ser_fast.data.sources import opened
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError, PcmWav

THREADS = 8  # most of the time of a scan is spent waiting for the disk
# A header that claims more frames for each byte is damaged or does not know the length.
_FRAMES_PER_BYTE = 256
_INTEGERS = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")  # subtypes of up to 16 bits


class Measured(NamedTuple):
    """Samples of an utterance, and the bytes that they take when int16 is used where it is lossless."""

    samples: int
    bytes: int


def measure(utterance: Utterance, sample_rate: int) -> Measured:
    """Return the length of ``read_utterance(utterance, sample_rate)``.

    A file without a reliable length, such as an MP3, is decoded.

    Raises:
        AudioError: as :func:`ser_fast.data.audio.read_utterance`, as far as the header shows it.
    """
    audio = utterance.audio
    if audio is not None and utterance.samples is None:
        with open_audio(audio, utterance.start, utterance.end) as (file, first, last), opened(audio) as raw:
            exact = file.format != "MP3" and file.frames <= _FRAMES_PER_BYTE * raw.seek(0, os.SEEK_END)
            samples = last - first
            if file.samplerate != sample_rate:
                samples = resampled_length(samples, file.samplerate, sample_rate)
            integers = file.width <= 2 if isinstance(file, PcmWav) else file.subtype in _INTEGERS
            packed = integers and file.channels == 1 and file.samplerate == sample_rate
        if exact and samples:
            return Measured(samples, samples * (2 if packed else 4))
    samples = len(read_utterance(utterance, sample_rate))
    return Measured(samples, 4 * samples)


def scan(
    utterances: Sequence[Utterance], sample_rate: int, report: Callable[[str], None] = lambda line: None
) -> list[Measured | AudioError]:
    """Return :func:`measure` of each utterance, or its error; ``report`` as in ``ser_fast.data.audio.read_each``."""
    found = read_each(utterances, lambda one: measure(one, sample_rate), report, "read headers of", THREADS)
    return list(found)

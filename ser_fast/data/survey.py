"""Properties of the audio of a corpus: durations, rates, signs of damage, and a digest that finds copies."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ser_fast.data.audio import open_audio, read_each, read_utterance
from ser_fast.data.flags import flags
from ser_fast.data.headers import THREADS
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError


class Properties(NamedTuple):
    """Duration, format and condition of an utterance's audio.

    Args:
        seconds: its duration.
        sample_rate: in hertz, before resampling.
        channels: number of channels.
        flags: the keys of ``ser_fast.data.flags.FLAGS`` that hold; empty if only the header was read.
        digest: SHA-256 of the samples, averaged over the channels; ``""`` if only the header was read.
    """

    seconds: float
    sample_rate: int
    channels: int
    flags: tuple[str, ...] = ()
    digest: str = ""


def survey(
    utterances: Sequence[Utterance], headers_only: bool = False, report: Callable[[str], None] = lambda line: None
) -> list[Properties | AudioError]:
    """Return the properties of each utterance, or the error of one that cannot be read.

    Args:
        utterances: the utterances.
        headers_only: read headers alone, which is fast; an MP3 without a Xing header then has an estimated duration,
            and damage behind the header is not seen.
        report: shows the progress, as in ``ser_fast.data.audio.read_each``.
    """
    if headers_only:
        return list(read_each(utterances, _of_header, report, "read headers of", THREADS))
    return list(read_each(utterances, _of_samples, report))


def _of_header(utterance: Utterance) -> Properties:
    if utterance.audio is None:
        length = len(read_utterance(utterance, utterance.sample_rate))
        return Properties(length / utterance.sample_rate, utterance.sample_rate, 1)
    with open_audio(utterance.audio, utterance.start, utterance.end) as (file, first, last):
        return Properties((last - first) / file.samplerate, file.samplerate, file.channels)


def _of_samples(utterance: Utterance) -> Properties:
    header = _of_header(utterance)
    rate = header.sample_rate
    wave = read_utterance(utterance, rate)
    found = flags(wave, utterance.audio, rate, start=utterance.start, end=utterance.end)
    digest = hashlib.sha256(wave.numpy().tobytes()).hexdigest()
    return header._replace(seconds=len(wave) / rate, flags=tuple(found.split()), digest=digest)

"""Synthetic corpora, which need no file: voices with six emotions, or with sentiment from sad to happy.

The voice is a source-filter model (Fant, Acoustic Theory of Speech Production, 1970). The source is a
band-limited pulse train that follows an F0 contour, with jitter, shimmer and a spectral tilt, plus noise for
breath and consonants. The filter is a cascade of formant resonators (Klatt, JASA 67, 1980) that move between
the vowels of Peterson and Barney (JASA 24, 1952). Source and filter are multiplied in a short-time Fourier transform.

The effect of each emotion on the voice follows the qualitative tendencies reviewed by Murray and Arnott (JASA 93,
1993) and Scherer (Speech Communication 40, 2003); the numbers are chosen so that emotions overlap. These corpora
serve to exercise a pipeline; they are no evidence about human speech.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from ser_fast._require import require
from ser_fast.data.utterance import Corpus, Utterance

EMOTIONS = ("anger", "fear", "happiness", "neutral", "sadness", "surprise")


class _Manner(NamedTuple):
    """Prosody and voice quality of an utterance."""

    pitch: float  # mean F0, semitones above the speaker's own
    accent: float  # random F0 excursion of each syllable, semitones
    lilt: float  # F0 rise and fall from syllable to syllable, semitones
    final: float  # F0 movement over the last third of the utterance, semitones
    rate: float  # syllables per second
    energy: float  # level, decibels above the speaker's own
    tilt: float  # fall of the source spectrum, decibels per octave
    jitter: float  # random deviation of F0, percent
    breath: float  # gain of the aspiration noise, decibels
    pause: float  # probability of a pause before a syllable


_MANNERS = {
    "anger": _Manner(3.5, 2.5, 0.0, -5.0, 5.4, 6.0, 2.0, 1.6, -27.0, 0.05),
    "fear": _Manner(7.0, 1.0, 0.3, 1.5, 5.8, 0.0, 6.5, 2.4, -19.0, 0.15),
    "happiness": _Manner(5.0, 1.0, 4.0, -1.0, 4.8, 3.0, 4.2, 0.8, -26.0, 0.05),
    "neutral": _Manner(0.0, 1.0, 0.4, -2.0, 4.4, 0.0, 6.0, 0.6, -25.0, 0.08),
    "sadness": _Manner(-1.5, 0.5, 0.0, -2.0, 3.6, -4.0, 9.0, 1.0, -19.0, 0.2),
    "surprise": _Manner(6.0, 1.2, 0.8, 9.0, 4.6, 2.0, 6.0, 1.0, -22.0, 0.08),
}
_SPREAD = _Manner(0.7, 0.3, 0.3, 1.0, 0.3, 2.0, 0.4, 0.2, 1.5, 0.0)  # standard deviation between takes


class _Speaker(NamedTuple):
    """Properties of a speaker that all utterances share."""

    f0: float  # hertz
    formants: float  # formant frequencies relative to an average man's; a shorter tract raises them
    rate: float  # multiplies the manner's
    tilt: float  # adds to the manner's
    level: float  # adds to the manner's energy
    strength: float  # how far emotions depart from neutral


class _Gesture(NamedTuple):
    """State of the articulators in each frame."""

    voicing: torch.Tensor  # [T, 1] gain
    noise: torch.Tensor  # [T, 1] gain
    noise_centre: torch.Tensor  # [T, 1] hertz
    formants: torch.Tensor  # [T, 3] hertz
    accent: torch.Tensor  # [T, 1] semitones


# The first three formants, in hertz, of the vowels of heed, hid, head, had, hod, hawed, who'd and hud.
_VOWELS = torch.tensor(
    [
        [270.0, 390.0, 530.0, 660.0, 730.0, 570.0, 300.0, 640.0],
        [2290.0, 1990.0, 1840.0, 1720.0, 1090.0, 840.0, 870.0, 1190.0],
        [3010.0, 2550.0, 2480.0, 2410.0, 2440.0, 2410.0, 2240.0, 2390.0],
    ]
).T
# Closure and constriction in seconds, voicing and noise gains, noise centre and three formants in hertz.
_CONSONANTS = torch.tensor(
    [
        [0.06, 0.02, 0.0, 0.8, 900.0, 250.0, 900.0, 2200.0],  # p
        [0.06, 0.02, 0.0, 1.0, 4200.0, 250.0, 1750.0, 2600.0],  # t
        [0.06, 0.03, 0.0, 0.9, 1900.0, 250.0, 2000.0, 2500.0],  # k
        [0.00, 0.10, 0.0, 0.3, 5200.0, 300.0, 1000.0, 2200.0],  # f
        [0.00, 0.11, 0.0, 0.8, 6200.0, 300.0, 1700.0, 2600.0],  # s
        [0.00, 0.11, 0.0, 0.9, 3300.0, 300.0, 1900.0, 2500.0],  # sh
        [0.00, 0.07, 0.4, 0.0, 1000.0, 250.0, 950.0, 2200.0],  # m
        [0.00, 0.07, 0.4, 0.0, 1000.0, 250.0, 1600.0, 2600.0],  # n
        [0.00, 0.06, 0.5, 0.0, 1000.0, 360.0, 1200.0, 2700.0],  # l
    ]
)
_SENTIMENT_LINE = 300_000  # halfway between two speakers' seeds, so that the emotions' sentences do not recur
_FRAME_SECONDS = 0.008  # about one period of a low voice, so noise drawn per frame acts as jitter and shimmer


def synthetic(speakers: int = 8, takes: int = 10, sample_rate: int = 16000) -> Corpus:
    """Return a corpus in memory in which every speaker acts every emotion ``takes`` times.

    Names are like ``s00_anger_03`` and speakers like ``s00``; even speakers are male, odd ones female.

    Args:
        speakers: number of speakers, at least 1.
        takes: utterances of each speaker and emotion, at least 1.
        sample_rate: in hertz, at least 8000.

    Raises:
        ValueError: an argument is too small.
    """
    _require_at_least("speakers", speakers, 1)
    _require_at_least("takes", takes, 1)
    utterances = [
        Utterance(
            name=f"s{speaker:02d}_{emotion}_{take:02d}",
            speaker=f"s{speaker:02d}",
            label=emotion,
            samples=synthesize(emotion, speaker, take, sample_rate),
            sample_rate=sample_rate,
        )
        for speaker in range(speakers)
        for emotion in EMOTIONS
        for take in range(takes)
    ]
    return Corpus("synthetic", utterances, list(EMOTIONS))


def synthetic_sentiment(speakers: int = 8, takes: int = 30, sample_rate: int = 16000) -> Corpus:
    """Return a corpus for regression in memory: every speaker says sentences, each with a random value in [-1, 1].

    The value says how far the manner goes from neutral at 0 towards sadness at -1 or happiness at 1. Names are like
    ``s00_03``.

    Args:
        speakers: number of speakers, at least 1.
        takes: sentences of each speaker, at least 1.
        sample_rate: in hertz, at least 8000.

    Raises:
        ValueError: an argument is too small.
    """
    _require_at_least("speakers", speakers, 1)
    _require_at_least("takes", takes, 1)
    _require_at_least("sample_rate", sample_rate, 8000)
    utterances = []
    for speaker in range(speakers):
        for take in range(takes):
            generator = _generator(speaker, _SENTIMENT_LINE + take)
            value = _uniform(-1, 1, generator)
            pole = "happiness" if value > 0 else "sadness"
            samples = _speak(pole, abs(value), speaker, sample_rate, generator)
            name, voice = f"s{speaker:02d}_{take:02d}", f"s{speaker:02d}"
            utterances.append(Utterance(name, voice, "", samples=samples, sample_rate=sample_rate, value=value))
    return Corpus("synthetic-sentiment", utterances, [], sentiment_scale=1.0)


def synthesize(emotion: str, speaker: int, take: int, sample_rate: int = 16000) -> torch.Tensor:
    """Return one utterance as float32 samples ``[N]`` in [-1, 1], about 0.7 to 2.3 seconds long.

    The samples depend on the arguments alone; every take is another random sentence.

    Args:
        emotion: one of ``EMOTIONS``.
        speaker: number of the speaker, from 0.
        take: number of the take, from 0.
        sample_rate: in hertz, at least 8000.

    Raises:
        ValueError: the emotion is unknown or a number is too small.
    """
    require(emotion in EMOTIONS, f"emotion is {emotion!r}", f"one of {', '.join(EMOTIONS)}")
    _require_at_least("speaker", speaker, 0)
    _require_at_least("take", take, 0)
    _require_at_least("sample_rate", sample_rate, 8000)
    generator = _generator(speaker, 1 + EMOTIONS.index(emotion) + len(EMOTIONS) * take)
    return _speak(emotion, 1.0, speaker, sample_rate, generator)


def _speak(emotion: str, degree: float, speaker: int, sample_rate: int, generator: torch.Generator) -> torch.Tensor:
    voice = _draw_speaker(speaker)
    manner = _draw_manner(emotion, degree, voice, generator)
    gesture = _articulate(manner, generator)
    return _render(voice, manner, gesture, sample_rate, generator)


def _require_at_least(name: str, value: int, least: int) -> None:
    require(value >= least, f"{name} is {value}", f"at least {least}")


def _generator(speaker: int, line: int) -> torch.Generator:
    """Return the generator of one line of a speaker; line 0 draws the speaker's voice."""
    return torch.Generator().manual_seed(600_001 * speaker + line)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _draw_speaker(number: int) -> _Speaker:
    generator = _generator(number, 0)
    female = number % 2 == 1
    return _Speaker(
        f0=_uniform(185, 240, generator) if female else _uniform(95, 135, generator),
        formants=_uniform(1.12, 1.22, generator) if female else _uniform(0.95, 1.07, generator),
        rate=_uniform(0.9, 1.1, generator),
        tilt=_uniform(-0.8, 0.8, generator),
        level=_uniform(-2, 2, generator),
        strength=_uniform(0.85, 1.15, generator),
    )


def _draw_manner(emotion: str, degree: float, voice: _Speaker, generator: torch.Generator) -> _Manner:
    """Draw the manner of a take: ``degree`` scales the emotion, and every value varies a little."""
    strength = degree * voice.strength * _uniform(0.8, 1.25, generator)
    deviates = torch.randn(len(_SPREAD), generator=generator).tolist()
    columns = zip(_MANNERS["neutral"], _MANNERS[emotion], _SPREAD, deviates, strict=True)
    manner = _Manner(*(rest + strength * (full - rest) + spread * z for rest, full, spread, z in columns))
    return manner._replace(
        rate=min(max(manner.rate * voice.rate, 3.6), 6.0),
        tilt=max(manner.tilt + voice.tilt, 1.0),
        jitter=max(manner.jitter, 0.2),
    )


def _articulate(manner: _Manner, generator: torch.Generator) -> _Gesture:
    """Draw a random sentence of four to six syllables, each a gap, a consonant and a vowel."""
    count = int(torch.randint(4, 7, (), generator=generator))
    vowels = _VOWELS[torch.randint(len(_VOWELS), (count,), generator=generator)]
    consonants = _CONSONANTS[torch.randint(len(_CONSONANTS), (count,), generator=generator)]
    closure, constriction, voicing, noise, noise_centre = consonants[:, :5].T
    locus = consonants[:, 5:]
    stress = 10 ** (0.1 * torch.randn(count, generator=generator))
    accent = manner.accent * torch.randn(count, generator=generator)
    accent += manner.lilt * (1 - 2 * (torch.arange(count) % 2))

    # Consonants shorten with the syllable, so that fast speech keeps its vowels.
    syllable = (0.85 + 0.3 * torch.rand(count, generator=generator)) / manner.rate
    closure, constriction = closure * 4.4 / manner.rate, constriction * 4.4 / manner.rate
    gap = closure + 0.12 * (torch.rand(count, generator=generator) < manner.pause)
    gap[0] = 0.08
    seconds = torch.stack([gap, constriction, syllable - closure - constriction], 1)

    silent = torch.zeros(count)
    gaps = torch.column_stack([silent, silent, noise_centre, locus, accent])
    onsets = torch.column_stack([voicing, noise, noise_centre, locus, accent])
    nuclei = torch.column_stack([stress, silent, noise_centre, vowels, accent])
    segments = torch.cat([torch.stack([gaps, onsets, nuclei], 1).flatten(0, 1), gaps[-1:]])
    ends = torch.cat([seconds.flatten(), torch.tensor([0.1])]).cumsum(0)
    frames = (ends / _FRAME_SECONDS).round().long().diff(prepend=torch.tensor([0]))
    columns = segments.repeat_interleave(frames, 0).split((1, 1, 1, 3, 1), 1)
    blends = (0.02, 0.02, 0.0, 0.06, 0.1)
    return _Gesture(*(_glide(column, blend) for column, blend in zip(columns, blends, strict=True)))


def _glide(steps: torch.Tensor, seconds: float) -> torch.Tensor:
    """Smooth the steps of the columns of ``[T, C]`` over about ``seconds`` on either side."""
    half = round(seconds / _FRAME_SECONDS / 2)
    rows = functional.pad(steps.T[None], (2 * half, 2 * half), mode="replicate")
    for _ in range(2):
        rows = functional.avg_pool1d(rows, 2 * half + 1, stride=1)
    return rows[0].T


def _intonate(voice: _Speaker, manner: _Manner, gesture: _Gesture, generator: torch.Generator) -> torch.Tensor:
    """Return F0 of every frame ``[T]`` in hertz: declination, accents and the movement at the end."""
    accent = gesture.accent[:, 0]
    time = torch.linspace(0, 1, len(accent))
    ending = (3 * time - 2).clamp(min=0)
    semitones = manner.pitch + accent + (1 - 2 * time) + manner.final * ending
    jitter = 1 + manner.jitter / 100 * torch.randn(len(accent), generator=generator)
    return (voice.f0 * 2 ** (semitones / 12) * jitter).clamp(60, 600)


def _render(
    voice: _Speaker, manner: _Manner, gesture: _Gesture, sample_rate: int, generator: torch.Generator
) -> torch.Tensor:
    """Return samples ``[N]``: source spectra, filtered frame by frame, at a random recording level."""
    f0 = _intonate(voice, manner, gesture, generator)
    hop = round(_FRAME_SECONDS * sample_rate)
    size = 4 * hop
    length = (len(f0) - 1) * hop
    window = torch.hann_window(size)
    shimmer = 1 + 0.05 * manner.jitter * torch.randn(len(f0), 1, generator=generator)
    sources = torch.stack([_pulses(f0, length, sample_rate), torch.randn(length, generator=generator)])
    pulses, noise = torch.stft(sources, size, hop, window=window, return_complex=True).mT

    frequency = torch.linspace(0, sample_rate / 2, size // 2 + 1)
    octaves = (frequency / 200).clamp(min=1).log2()
    glottis = 10 ** (-manner.tilt * octaves / 20)
    breath = 10 ** ((manner.breath - 3 * octaves) / 20)
    tract = _tract(gesture.formants * voice.formants, voice.formants, frequency)
    fading = torch.linspace(1.2, 0.7, len(f0))[:, None]
    voiced = fading * gesture.voicing * tract * (shimmer * glottis * pulses + breath * noise)
    band = torch.exp(-8 * (frequency / gesture.noise_centre - 1) ** 2)
    spectrum = voiced + 0.25 * gesture.noise * band * noise
    samples = torch.istft(spectrum.mT, size, hop, window=window, length=length)

    # With a random gain and noise floor the level alone does not reveal the emotion.
    decibels = -26 + manner.energy + voice.level + _uniform(-4, 4, generator)
    samples = samples * 10 ** (decibels / 20) / samples.square().mean().sqrt()
    samples += 10 ** (_uniform(-70, -55, generator) / 20) * torch.randn(length, generator=generator)
    return samples / samples.abs().max().clamp(min=1)


def _pulses(f0: torch.Tensor, length: int, sample_rate: int) -> torch.Tensor:
    """Return a pulse train ``[length]``: nearly equal cosines at every harmonic of ``f0`` below Nyquist."""
    # In float64, because rounding of the phase accumulates over tens of thousands of samples.
    contour = functional.interpolate(f0[None, None].double(), length, mode="linear", align_corners=True)[0, 0]
    phase = 2 * math.pi * (contour / sample_rate).cumsum(0)
    harmonics = (sample_rate / 2 / contour).floor()
    # The finite geometric series of z^k in closed form; |z| < 1 keeps it from 0 / 0 at phase zero.
    radius = torch.full_like(phase, 0.995)
    z = torch.polar(radius, phase)
    return (z * (1 - torch.polar(radius**harmonics, harmonics * phase)) / (1 - z)).real.float()


def _tract(formants: torch.Tensor, scale: float, frequency: torch.Tensor) -> torch.Tensor:
    """Return the response ``[T, F]`` of resonators in series: ``formants`` ``[T, 3]`` and fixed ones above them."""
    response = torch.ones(1, dtype=torch.complex64)
    moving = zip(formants.T[:, :, None], (70.0, 100.0, 140.0), strict=True)
    # A uniform tube of 17.5 cm resonates at 3500 Hz and every 1000 Hz above.
    fixed = ((centre, 0.06 * centre) for centre in torch.arange(3500.0, 8000.0, 1000.0) * scale)
    for centre, bandwidth in (*moving, *fixed):
        response = response * (centre**2 / torch.complex(centre**2 - frequency**2, bandwidth * frequency))
    return response

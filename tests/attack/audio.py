"""Damaged audio files: a finite wave of plausible length, or an AudioError that names the file."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import soundfile
import soxr  # noqa: F401  patch.dict would unload it again
import torch
from mutation import mutated

from ser_fast.data.audio import read_audio
from ser_fast.data.wav import AudioError

LONGEST = 1 << 24  # samples that a damaged file of at most a few hundred kilobytes may become
FORMATS = (
    ("wav", "WAV", "PCM_16"), ("wav", "WAV", "PCM_24"), ("wav", "WAV", "PCM_32"), ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "FLOAT"), ("wav", "WAV", "DOUBLE"), ("wav", "WAV", "ULAW"), ("wav", "WAV", "GSM610"),
    ("wav", "WAV", "IMA_ADPCM"), ("wav", "WAV", "MS_ADPCM"), ("wav", "WAVEX", "PCM_16"), ("wav", "RF64", "PCM_16"),
    ("wav", "W64", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"), ("aiff", "AIFF", "PCM_16"), ("aif", "AIFF", "FLOAT"), ("wav", "AU", "PCM_16"),
)  # fmt: skip


@dataclass
class Case:
    path: Path
    changed: str
    sample_rate: int
    start: float | None
    end: float | None
    without_soundfile: bool

    def __str__(self) -> str:
        reader = " without soundfile" if self.without_soundfile else ""
        return f"{self.path.name} at {self.sample_rate} Hz, {self.start}..{self.end} s{reader}: {self.changed}"


@functools.cache
def valid(folder: Path, suffix: str, kind: str, subtype: str, rate: int, channels: int) -> bytes:
    path = folder / f"valid.{suffix}"
    samples = np.random.default_rng(0).normal(0, 0.1, (rate // 4, channels)).cumsum(0) * 0.02
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)
    return path.read_bytes()


def case(random: Random, folder: Path) -> Case:
    suffix, kind, subtype = random.choice(FORMATS)
    rate, channels = (
        random.choice((8000, 16000, 48000)),
        1 if subtype in ("GSM610", "IMA_ADPCM") else random.choice((1, 2)),
    )
    data = valid(folder, suffix, kind, subtype, rate, channels)
    data, changed = mutated(random, data) if random.random() < 0.95 else (data, "nothing")
    path = folder / f"{kind}_{subtype}.{suffix}"
    path.write_bytes(data)
    start, end = random.choice(((None, None), (None, None), (0.1, None), (None, 0.2), (0.05, 0.1)))
    return Case(path, changed, random.choice((8000, 16000, 16000, 44100)), start, end, random.random() < 0.2)


def check(case: Case) -> None:
    hidden = {"soundfile": None} if case.without_soundfile else {}
    try:
        with mock.patch.dict(sys.modules, hidden):
            wave = read_audio(case.path, case.sample_rate, case.start, case.end)
    except AudioError as error:
        said = str(error)
        assert case.path.name in said and "\n" not in said and len(said) < 500, f"unclear error: {said[:1000]!r}"
        return
    except ImportError:
        assert case.without_soundfile
        return
    assert wave.dtype == torch.float32 and wave.dim() == 1, f"it became {wave.dtype} {list(wave.shape)}"
    assert 0 < len(wave) <= LONGEST, f"{case.path.stat().st_size} bytes became {len(wave)} samples"
    assert torch.isfinite(wave).all(), "the wave is not finite"
    assert case.changed != "nothing" or abs(len(wave) / case.sample_rate - length(case)) < 0.1, f"{len(wave)} samples"


def length(case: Case) -> float:
    """Return the seconds that an undamaged file has between start and end."""
    return (case.end or 0.25) - (case.start or 0)

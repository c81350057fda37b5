"""WAV files where soundfile is missing: what is read, bit by bit as soundfile reads it, and what is refused."""

import os
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data import audio
from ser_fast.data.audio import find_audio, read_audio
from ser_fast.data.wav import AudioError, open_pcm

DATA = Path(os.environ.get("SER_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")
GUID = bytes.fromhex("0100000000001000800000aa00389b71")  # of PCM in WAVE_FORMAT_EXTENSIBLE


@pytest.fixture
def missing(monkeypatch):
    """Takes soundfile away, so that what was read before can be read again without it."""
    return lambda: monkeypatch.setitem(sys.modules, "soundfile", None)


def noise(path: Path, frames: int = 1001, channels: int = 1, **options) -> Path:
    """Random 32-bit samples with both extremes, of which a narrower format keeps the upper bits."""
    limits = np.iinfo(np.int32)
    samples = np.random.default_rng(frames + channels).integers(
        limits.min, limits.max, (frames, channels), np.int32, endpoint=True
    )
    samples[:4, 0] = limits.min, limits.max, 0, -1
    soundfile.write(path, samples, 16000, **options)
    return path


def header(tag: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, rest: bytes = b"") -> bytes:
    block = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + rest


def riff(described: bytes, samples: bytes = bytes(range(240)), size: int | None = None, before: bytes = b"") -> bytes:
    """A WAV file of a format chunk and its samples, of which ``size`` is what it says of its own."""
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(described)) + described
    body += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_open_pcm_equals_soundfile_bitwise(tmp_path, monkeypatch, missing, subtype, channels, container):
    path = noise(tmp_path / "a.wav", channels=channels, subtype=subtype, format=container)
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 300)  # 1001 frames in at least four blocks
    parts = ({}, {"start": 0.01}, {"end": 0.02}, {"start": 0.003, "end": 0.05}, {"end": 0.07})
    expected = [read_audio(path, **part) for part in parts]
    missing()
    found = [read_audio(path, **part) for part in parts]
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert [len(one) for one in found] == [1001, 841, 320, 752, 1001] and found[0].dtype == torch.float32
    assert found[0].min() >= -1 and (channels > 1 or found[0][0] == -1)


def test_open_pcm_reads_no_more_than_samples(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(riff(header()) + b"LIST" + struct.pack("<I", 100) + bytes(100))
    wav = open_pcm(path)
    wav.seek(20)
    assert [wav.read(frames).shape for frames in (70, 70, 70)] == [(70, 1), (30, 1), (0, 1)]


# Irregular files that libsndfile reads.
ODD = {
    "size 0": riff(header(), size=0),
    "size too small": riff(header(), size=60),
    "size too large": riff(header(), size=0xFFFFFFF0),
    "long format chunk": riff(header(rest=b"\0\0" + b"x" * 100)),
    "chunk of odd size before": riff(header(), before=b"LIST" + struct.pack("<I", 5) + b"INFOx\0"),
    "format chunk after another": riff(
        header(channels=2, bits=24), before=b"JUNK" + struct.pack("<I", 28) + bytes(28)
    ),
    "12 bits in 16": riff(header(bits=12)),
    "20 bits in 24": riff(header(0xFFFE, bits=24, rest=struct.pack("<HHI", 22, 20, 0) + GUID)),
    "24 bits in 32": riff(header(0xFFFE, bits=32, rest=struct.pack("<HHI", 22, 24, 0) + GUID)),
    "not a whole frame at the end": riff(header(channels=2), samples=bytes(range(99))),
}


@pytest.mark.parametrize("case", ODD)
def test_open_pcm_reads_odd_headers_like_soundfile(tmp_path, missing, case):
    path = tmp_path / "a.wav"
    path.write_bytes(ODD[case])
    expected = read_audio(path)
    missing()
    assert torch.equal(read_audio(path), expected) and len(expected) > 20


@pytest.mark.parametrize("lost", [1, 2, 1500, 2001])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "AIFF"])
def test_open_pcm_refuses_truncated_files(tmp_path, missing, container, lost):
    path = noise(tmp_path / "a", subtype="PCM_16", format=container)
    path.write_bytes(path.read_bytes()[:-lost])
    missing()
    with pytest.raises(AudioError, match=f"a: truncated, {lost} bytes less"):
        read_audio(path)


DAMAGED = {
    "no format": riff(header()).replace(b"fmt ", b"fmx "),
    "short format": riff(header()[:14]),
    "no samples": riff(header()).replace(b"data", b"dota"),
    "samples before the format": riff(header(), before=b"data" + struct.pack("<I", 8) + bytes(8)),
    "endless chunk": riff(header(), before=b"LIST" + struct.pack("<I", 0xFFFFFFF0) + b"abcd"),
    "no channels": riff(header(channels=0)),
    "too many channels": riff(header(channels=1025, bits=8), bytes(10250)),
    "no rate": riff(header(rate=0)),
    "text": b"no audio at all\n" * 20,
    "another form": b"RIFF" + struct.pack("<I", 100) + b"AVI " + bytes(96),
    "FLAC": b"fLaC" + bytes(96),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_open_pcm_refuses_files_that_are_no_wav(tmp_path, missing, case):
    path = tmp_path / "a.WAV"
    path.write_bytes(DAMAGED[case])
    for reader in ("soundfile", "python"):
        with pytest.raises(AudioError, match=r"a\.WAV: not readable as audio: "):
            read_audio(path)
        if reader == "soundfile":
            missing()


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.flac", {}), ("a.ogg", {}), ("a.mp3", {}), ("a.aiff", {}), ("a.wav", {"endian": "BIG"}),
     *(("a.wav", {"subtype": subtype}) for subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")),
     ("a.wav", {"format": "WAVEX", "subtype": "FLOAT"})],
    ids=str,
)  # fmt: skip
def test_read_audio_names_soundfile_where_needed(tmp_path, missing, name, options):
    path = noise(tmp_path / name, **options)
    assert len(read_audio(path)) >= 1001
    missing()
    sentence = rf"{path}: reading audio needs soundfile: pip install 'ser_fast\[train\]'; without it only PCM WAV"
    with pytest.raises(AudioError, match=sentence):
        read_audio(path)


def test_read_audio_without_libsndfile_uses_open_pcm(tmp_path, monkeypatch):
    path = noise(tmp_path / "a.wav")
    expected = read_audio(path)
    (tmp_path / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.delitem(sys.modules, "soundfile")
    monkeypatch.syspath_prepend(tmp_path)
    assert torch.equal(read_audio(path), expected)


def test_read_audio_prefers_soundfile(tmp_path, monkeypatch):
    path = noise(tmp_path / "a.wav")
    opened = []
    monkeypatch.setattr(
        soundfile, "SoundFile", lambda path, old=soundfile.SoundFile: opened.append(path) or old(path)
    )
    read_audio(path)
    assert list(map(os.fsdecode, opened)) == [str(path)]


def test_open_pcm_reads_the_wanted_part_alone(tmp_path, missing):
    path = noise(tmp_path / "a.wav", 1_000_000, subtype="PCM_16")
    missing()
    read_audio(path, end=0.1)  # what is imported for the first time would be counted
    tracemalloc.start()
    try:
        assert len(read_audio(path, start=30.0, end=30.1)) == 1600
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # of 2,000,000 bytes; 1600 frames take 2 bytes in the file and 4 and 4 in arrays


@pytest.mark.skipif(not (DATA / "emodb" / "wav").is_dir(), reason=f"Emo-DB is not in {DATA}")
def test_open_pcm_of_emodb_equals_soundfile(missing):
    files = find_audio(DATA / "emodb" / "wav")[::10]
    expected = [read_audio(file) for file in files]
    missing()
    assert len(files) == 54
    assert all(torch.equal(read_audio(file), one) for file, one in zip(files, expected))

"""Lengths and sizes of utterances by their headers."""

import random
import re
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch

from ser_fast.data import headers
from ser_fast.data.audio import read_utterance, resampled_length
from ser_fast.data.headers import measure, scan
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import pack

FORMATS = (("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.wav", "ULAW"), ("a.flac", "PCM_16"),
           ("a.flac", "PCM_S8"), ("a.aiff", "PCM_U8"), ("a.ogg", "VORBIS"), ("a.ogg", "OPUS"))  # fmt: skip


def utterance(path, **span) -> Utterance:
    return Utterance("a", "s", "l", path, **span)


def test_resampled_length_is_that_of_soxr():
    draw = random.Random(0)
    rates = [1000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]
    for _ in range(2000):
        rate = draw.choice([*rates, draw.randint(1000, 768_000)])
        wanted = draw.choice([8000, 16000, 22050, 44100, draw.randint(1000, 60_000)])
        frames = draw.randint(1, 2000)
        if rate != wanted:
            found = len(soxr.resample(np.zeros(frames, np.float32), rate, wanted, quality="HQ"))
            assert resampled_length(frames, rate, wanted) == found, (frames, rate, wanted)


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_measure_equals_what_is_read(tmp_path, name, subtype, channels, rate):
    path = tmp_path / name
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (7001, channels)), rate, subtype=subtype)
    for span in ({}, {"start": 0.01}, {"start": 0.0111, "end": 0.1}):
        wave = read_utterance(utterance(path, **span))
        found = measure(utterance(path, **span), 16000)
        packed = pack(wave.numpy()).nbytes
        assert found.samples == len(wave) and found.bytes >= packed
        if channels == 1 and rate == 16000 and subtype != "OPUS":  # libsndfile decodes Opus to 16 bits
            assert found.bytes == packed


def test_measure_decodes_what_has_no_reliable_length(tmp_path):
    soundfile.write(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16000, format="MP3")
    assert measure(utterance(tmp_path / "a.mp3"), 16000).samples == len(read_utterance(utterance(tmp_path / "a.mp3")))
    flac = tmp_path / "a.flac"
    soundfile.write(flac, np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 16000)
    content = bytearray(flac.read_bytes())
    content[21] |= 0x0F  # of the 36 bits that are the number of samples
    flac.write_bytes(content)
    with pytest.raises(AudioError) as read:
        read_utterance(utterance(flac))
    with pytest.raises(AudioError, match=re.escape(str(read.value))):
        measure(utterance(flac), 16000)


def test_measure_without_soundfile(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(900), 16000, subtype="PCM_16")
    soundfile.write(tmp_path / "b.wav", np.zeros(900), 16000, subtype="PCM_24")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert [measure(utterance(tmp_path / name), 16000) for name in ("a.wav", "b.wav")] == [(900, 1800), (900, 3600)]


def test_measure_of_samples_in_memory():
    one = Utterance("a", "s", "l", samples=torch.zeros(441), sample_rate=44100)
    assert measure(one, 16000) == (160, 640)


def test_scan_returns_errors_in_place(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(900), 16000)
    (tmp_path / "b.wav").write_text("no audio")
    found = scan([utterance(tmp_path / name) for name in ("b.wav", "a.wav", "c.wav")], 16000)
    assert found[1] == (900, 1800) and all(isinstance(found[i], AudioError) for i in (0, 2))
    assert "b.wav: not readable" in str(found[0]) and "c.wav: no such file" in str(found[2])
    assert headers.scan([], 16000) == []

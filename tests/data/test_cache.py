"""The cache of a corpus on disk."""

import errno
import os
import pickle

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data import cache
from ser_fast.data.audio import read_corpus, read_utterance
from ser_fast.data.cache import Cache, DiskWaves
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError


@pytest.fixture
def utterances(tmp_path) -> list[Utterance]:
    draw = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / f"{number}.wav"
        subtype = "FLOAT" if number % 3 == 0 else "PCM_16"
        soundfile.write(path, draw.uniform(-0.5, 0.5, 1000 + number), 16000, subtype=subtype)
    return [Utterance(f"u{number}", "s", "l", tmp_path / f"{number}.wav") for number in range(12)]


class Made:
    """A cache with the lines that it reports and the utterances that it reads."""

    def __init__(self, folder, utterances, monkeypatch, skip_bad=False, stop=None):
        self.lines, self.read = [], []
        original = cache.read_utterance.__wrapped__ if hasattr(cache.read_utterance, "__wrapped__") else (
            cache.read_utterance
        )  # fmt: skip

        def read(utterance, rate):
            self.read.append(utterance.name)
            if utterance.name == stop:
                raise KeyboardInterrupt
            return original(utterance, rate)

        read.__wrapped__ = original
        monkeypatch.setattr(cache, "read_utterance", read)
        self.cache = Cache(folder / "cache", utterances, 16000, self.lines.append)
        self.rows = self.cache.make(skip_bad, 10**6)
        self.names = [one.name for one in utterances]

    def assert_whole(self, utterances):
        waves = DiskWaves(self.cache.waves, self.rows, self.names)
        _, wanted, _ = read_corpus(utterances)
        assert all(torch.equal(wave, other) for wave, other in zip(waves, wanted, strict=True))
        assert self.cache.written() == sum(row.samples * row.width for row in self.rows)


def test_cache_is_made_once(utterances, tmp_path, monkeypatch):
    first = Made(tmp_path, utterances, monkeypatch)
    first.assert_whole(utterances)
    assert first.read == first.names and {row.width for row in first.rows} == {2, 4}
    second = Made(tmp_path, utterances, monkeypatch)
    second.assert_whole(utterances)
    assert second.read == [] == second.lines
    waves = DiskWaves(second.cache.waves, second.rows, second.names, workers=1)
    assert torch.equal(pickle.loads(pickle.dumps(waves))[3], waves[3]) and waves.workers == 1


def test_cache_resumes_after_an_interrupt(utterances, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.os, "cpu_count", lambda: 1)
    monkeypatch.setattr("ser_fast.data.audio._AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        Made(tmp_path, utterances, monkeypatch, stop="u8")
    again = Made(tmp_path, utterances, monkeypatch)
    again.assert_whole(utterances)
    assert again.lines == [f"resuming after {12 - len(again.read)} of 12 utterances"] and 4 <= len(again.read) <= 6


@pytest.mark.parametrize("lost", [1, 1000, 2500, 40_000])
def test_cache_drops_a_half_written_record(utterances, tmp_path, monkeypatch, lost):
    """A killed process may leave a part of the last wave or line."""
    made = Made(tmp_path, utterances, monkeypatch)
    os.replace(made.cache.index, made.cache.making)
    for path in (made.cache.waves, made.cache.making):
        os.truncate(path, max(0, path.stat().st_size - lost))
    Made(tmp_path, utterances, monkeypatch).assert_whole(utterances)


@pytest.mark.parametrize("damage", ["truncated", "without waves", "garbage", "half an index"])
def test_damaged_cache_is_made_again(utterances, tmp_path, monkeypatch, damage):
    made = Made(tmp_path, utterances, monkeypatch)
    if damage == "truncated":
        os.truncate(made.cache.waves, 9000)
    elif damage == "without waves":
        made.cache.waves.unlink()
    elif damage == "garbage":
        made.cache.index.write_bytes(b"\xff\x00[1, 2]\n[]\n{}\n")
    else:
        os.truncate(made.cache.index, 50)
    assert made.cache.rows(False) is None
    again = Made(tmp_path, utterances, monkeypatch)
    again.assert_whole(utterances)
    assert again.lines[0] == f"{made.cache.folder} is damaged; its missing part is made again"


def test_damaged_wave_is_an_error_when_used(utterances, tmp_path, monkeypatch):
    made = Made(tmp_path, utterances, monkeypatch)
    waves = DiskWaves(made.cache.waves, made.rows, made.names)
    with open(made.cache.waves, "r+b") as file:
        file.seek(made.rows[5].offset + 10)
        file.write(b"\x7f\x01")
    assert len(waves[4]) == 1004
    with pytest.raises(AudioError, match=rf"u5: the cache is damaged; remove {made.cache.folder} and rerun"):
        waves[5]
    os.truncate(made.cache.waves, 30)
    with pytest.raises(AudioError, match="u4: the cache is damaged"):
        waves[4]
    made.cache.waves.unlink()
    with pytest.raises(AudioError, match="u4: the cache cannot be read"):
        waves[4]


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"[5,", b"[4,"), (b" 2, ", b" 3, "), (b" 2, ", b" 2e999, "), (b"[5, ", b"[5, 9"), (b"[5,", b"[-5,")],
)
def test_damaged_index_gives_no_other_wave(utterances, tmp_path, monkeypatch, before, after):
    made = Made(tmp_path, utterances, monkeypatch)
    index = made.cache.index.read_bytes()
    assert before in index
    made.cache.index.write_bytes(index.replace(before, after, 1))
    again = Made(tmp_path, utterances, monkeypatch)
    waves = DiskWaves(again.cache.waves, again.rows, again.names)
    for number in range(len(utterances)):
        try:
            assert torch.equal(waves[number], read_utterance(utterances[number], 16000))
        except AudioError as error:
            assert "the cache is damaged" in str(error)


def test_cache_key_changes_with_the_files(utterances, tmp_path):
    def key(rate=16000):
        return Cache(tmp_path, utterances, rate).folder.name

    before = key()
    assert key() == before != key(8000)
    os.utime(utterances[3].path, ns=(1, 1))
    assert key() != before
    utterances[3].path.unlink()
    assert key() != before


def test_cache_records_errors(utterances, tmp_path, monkeypatch):
    """With skip_bad they are not read again; without it they are, and then the cache is not complete."""
    utterances[2].path.write_text("no audio")
    first = Made(tmp_path, utterances, monkeypatch)
    assert isinstance(first.rows[2], AudioError) and first.cache.rows(True) is None
    second = Made(tmp_path, utterances, monkeypatch, skip_bad=True)
    assert second.read == ["u2"] and str(second.rows[2]) == str(first.rows[2])
    third = Made(tmp_path, utterances, monkeypatch, skip_bad=True)
    assert third.read == [] and str(third.rows[2]) == str(first.rows[2])
    fourth = Made(tmp_path, utterances, monkeypatch)
    assert fourth.read == ["u2"] and fourth.cache.rows(True) is None
    mended, real = Made(tmp_path, utterances, monkeypatch, skip_bad=True), cache.read_utterance.__wrapped__
    assert isinstance(mended.rows[2], AudioError)
    monkeypatch.setattr(cache, "read_utterance", lambda one, rate: real(utterances[0], rate))
    assert len([row for row in Made(tmp_path, utterances, monkeypatch).rows if isinstance(row, AudioError)]) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_keeps_what_is_written(utterances, tmp_path, monkeypatch, number):
    write, left = cache._write, [8]

    def full(file, content):
        left[0] -= 1
        if left[0] < 0:
            file.write(bytes(content)[:100])
            raise OSError(number, "No space left on device")
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", full)
        text = r"cache_dir is .*/cache, where the disk is full: about 1 MB more are needed. The 1 MB that are written are"
        with pytest.raises(OSError, match=text):
            Made(tmp_path, utterances, monkeypatch)
    again = Made(tmp_path, utterances, monkeypatch)
    again.assert_whole(utterances)
    assert again.lines == ["resuming after 4 of 12 utterances"]

"""Waves in memory and in files."""

import pickle

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data.audio import read_audio
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import FileWaves, MemoryWaves, Selected, lengths, pack, unpack


def bits(wave: np.ndarray) -> bytes:
    return np.asarray(wave, np.float32).tobytes()


def test_pack_is_int16_where_that_is_lossless():
    every = (np.arange(-(2**15), 2**15) / np.float32(2**15)).astype(np.float32)
    assert pack(every).dtype == np.int16 and bits(unpack(pack(every))) == bits(every)


@pytest.mark.parametrize("value", [0.1, -0.0, 1.0, 2.0**-16, -1.5, 1e30, np.nan, np.inf])
def test_pack_keeps_other_floats(value):
    wave = np.array([0.5, value, 0.25], np.float32)
    assert pack(wave).dtype == np.float32 and bits(unpack(pack(wave))) == bits(wave)


def test_memory_waves_index_as_a_list():
    arrays = [np.arange(n, dtype=np.int16) for n in (3, 1, 4)]
    waves = MemoryWaves(arrays, list("abc"))
    assert len(waves) == 3 and list(waves.lengths) == [3, 1, 4] and waves.workers == 0
    assert torch.equal(waves[-1], torch.arange(4) / 2**15) and waves[0].dtype == torch.float32
    assert [len(wave) for wave in waves] == [3, 1, 4] == [len(wave) for wave in waves[:]]
    with pytest.raises(IndexError):
        waves[3]


def test_selected_waves_are_a_view():
    waves = MemoryWaves([np.full(n, n, np.int16) for n in range(1, 7)], list("abcdef"))
    some = Selected(Selected(waves, [5, 3, 1]), [2, 0])
    assert list(some.lengths) == [2, 6] and some.names == ["b", "f"] and some.waves is waves
    assert torch.equal(some[1], waves[5]) and some.stored(0) is waves.stored(1) and some[1:].names == ["f"]
    plain = [torch.ones(2), torch.ones(5)]
    assert (
        Selected(plain, [1])[0] is plain[1] and lengths(plain) == [2, 5] and len(Selected(plain, [1]).stored(0)) == 5
    )


def test_file_waves_read_when_used(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.linspace(-0.5, 0.5, 900), 16000)
    waves = pickle.loads(pickle.dumps(FileWaves([Utterance("a", "s", "l", path)], [900], 16000, workers=2)))
    assert torch.equal(waves[0], read_audio(path)) and waves.workers == 2
    soundfile.write(path, np.zeros(901), 16000)
    with pytest.raises(AudioError, match=r"a.wav: has 901 samples, and had 900 before; it was changed"):
        waves[0]
    path.unlink()
    with pytest.raises(AudioError, match=r"a\.wav: no such file"):
        waves[0]

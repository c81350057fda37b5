"""Waves of a corpus: in memory, in a cache on disk, or decoded from their files when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ser_fast.data.audio import read_utterance
from ser_fast.data.sources import shown
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError

_SCALE = np.float32(2**-15)


def pack(wave: np.ndarray) -> np.ndarray:
    """Return a float32 wave ``[n]`` as int16 if that is lossless: ``unpack(pack(wave))`` has the same bits.

    Example:
        >>> pack(np.array([0.5, -1], np.float32)), pack(np.array([0.1], np.float32))
        (array([ 16384, -32768], dtype=int16), array([0.1], dtype=float32))
    """
    with np.errstate(invalid="ignore"):  # NaN and what int16 does not hold become other numbers
        packed = (wave * np.float32(2**15)).astype(np.int16)
    same = np.array_equal(unpack(packed).view(np.int32), wave.view(np.int32))
    return packed if same else wave


def unpack(stored: np.ndarray) -> np.ndarray:
    """Return a wave of :func:`pack` as float32."""
    return stored if stored.dtype == np.float32 else np.multiply(stored, _SCALE, dtype=np.float32)


class Waves(Sequence):
    """Waves with known lengths; ``waves[i]`` is a float32 tensor ``[n]`` and ``waves[a:b]`` a :class:`Selected`.

    Args:
        lengths: samples of each wave.
        names: name of each, for messages.
        workers: processes that read them for training; 0 reads in the process that uses them.
    """

    def __init__(self, lengths: Sequence[int], names: Sequence[str], workers: int = 0):
        self.lengths, self.names, self.workers = lengths, names, workers

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int | slice) -> Tensor | Selected:
        index = range(len(self))[i]
        return Selected(self, index) if isinstance(index, range) else torch.from_numpy(unpack(self.stored(index)))

    def stored(self, i: int) -> np.ndarray:
        """Return a wave as float32 or, if it is stored so, as int16; by NumPy alone, for processes that read."""
        raise NotImplementedError


class MemoryWaves(Waves):
    """Waves in memory, as int16 where :func:`pack` makes them so."""

    def __init__(self, waves: Sequence[np.ndarray], names: Sequence[str]):
        super().__init__([len(wave) for wave in waves], names)
        self.waves = waves

    def stored(self, i: int) -> np.ndarray:
        return self.waves[i]


class FileWaves(Waves):
    """Waves that are decoded from their files whenever they are used."""

    def __init__(self, utterances: Sequence[Utterance], lengths: Sequence[int], sample_rate: int, workers: int = 0):
        super().__init__(lengths, [utterance.name for utterance in utterances], workers)
        self.utterances, self.sample_rate = utterances, sample_rate

    def stored(self, i: int) -> np.ndarray:
        wave = read_utterance(self.utterances[i], self.sample_rate).numpy()
        if len(wave) != self.lengths[i]:
            name = shown(self.utterances[i].audio or Path(self.names[i]))
            raise AudioError(f"{name}: has {len(wave)} samples, and had {self.lengths[i]} before; it was changed")
        return wave


class Selected(Waves):
    """Some of a sequence of waves, by their indices."""

    def __init__(self, waves: Sequence[Tensor], index: Sequence[int]):
        if isinstance(waves, Selected):
            waves, index = waves.waves, [waves.index[i] for i in index]
        every = lengths(waves)
        names = waves.names if isinstance(waves, Waves) else range(len(waves))
        super().__init__([every[i] for i in index], [str(names[i]) for i in index], getattr(waves, "workers", 0))
        self.waves, self.index = waves, index

    def __getitem__(self, i: int | slice) -> Tensor | Selected:
        return super().__getitem__(i) if isinstance(i, slice) else self.waves[self.index[i]]

    def stored(self, i: int) -> np.ndarray:
        wave = self.waves
        return wave.stored(self.index[i]) if isinstance(wave, Waves) else wave[self.index[i]].numpy()


def lengths(waves: Sequence[Tensor]) -> Sequence[int]:
    """Return the samples of each wave; those of :class:`Waves` are known without reading."""
    return waves.lengths if isinstance(waves, Waves) else [len(wave) for wave in waves]

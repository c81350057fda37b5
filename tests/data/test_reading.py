"""Worker processes that read batches ahead."""

import os
import signal

import numpy as np
import pytest
import torch

from ser_fast.data.batches import LengthSortedBatches
from ser_fast.data.reading import read_groups
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import Waves


class Made(Waves):
    """Waves of n times the value n; some of them do something else."""

    def __init__(self, workers: int, count: int = 12, **special):
        super().__init__(range(1, count + 1), [f"u{n}" for n in range(1, count + 1)], workers)
        self.special = special

    def stored(self, i: int) -> np.ndarray:
        if action := self.special.get(self.names[i]):
            action()
        wave = np.full(self.lengths[i], i + 1, np.int16)
        return wave if i % 2 else wave.astype(np.float32) / 2**15


def fail():
    raise AudioError("u6.wav: gone")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_read_groups_gives_waves_in_order(workers):
    waves = Made(workers)
    groups = [[3, 1], [], [11, 0, 5], [2], [4, 2]]
    for group, found in zip(groups, read_groups(waves, groups), strict=True):
        assert len(group) == len(found) and all(torch.equal(wave, waves[i]) for i, wave in zip(group, found))
    assert list(read_groups(waves, [])) == []


def test_read_groups_draws_no_random_numbers():
    """Workers change nothing about the numbers of the run, and leave no handler of signals behind."""
    handler, state = signal.getsignal(signal.SIGCHLD), torch.get_rng_state()
    batches = {workers: LengthSortedBatches(Made(workers), [0] * 12, 5, bucket=1) for workers in (0, 2)}
    seen = {
        workers: [(batch.index, batch.wave) for batch in batches[workers].epoch(torch.Generator().manual_seed(3))]
        for workers in batches
    }
    for (index, wave), (other, same) in zip(seen[0], seen[2], strict=True):
        assert index == other and torch.equal(wave, same)
    assert torch.equal(torch.get_rng_state(), state) and signal.getsignal(signal.SIGCHLD) == handler


def test_read_groups_raises_the_error_of_a_file():
    groups = iter(read_groups(Made(2, u6=fail), [[0], [1], [4, 5, 6], [7]]))
    assert [len(next(groups)[0]) for _ in range(2)] == [1, 2]
    with pytest.raises(AudioError, match=r"^u6\.wav: gone$"):
        next(groups)


def test_dead_worker_names_what_it_read():
    with pytest.raises(RuntimeError, match=r"a process that reads audio ended while it read u6, .*; rerun the comm"):
        list(read_groups(Made(2, u6=die), [[0], [4, 5, 6], [1], [2]]))

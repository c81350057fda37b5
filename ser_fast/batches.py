"""Batches of utterances sorted by length, so that little of a batch is padding (the BiGRU-MHA paper's batching)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """``wave`` ``[B, N]``, zero past ``lengths`` ``[B]`` (samples), ``labels`` ``[B]``, ``index`` in the data set."""

    wave: Tensor
    lengths: Tensor
    labels: Tensor
    index: list[int]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.wave.to(device), self.lengths.to(device), self.labels.to(device), self.index)


def pad(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves of ``[n]`` as one batch ``[B, N]`` and its lengths ``[B]``."""
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths


class LengthSortedBatches:
    """Batches of neighbours in length, each padded to its longest; the order of the batches is drawn per epoch.

    Args:
        waves: float32 ``[n]`` each.
        labels: a class index each.
        batch_size: utterances of a batch; the last one may have fewer.
    """

    def __init__(self, waves: Sequence[Tensor], labels: Sequence[int], batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.waves, self.labels = waves, labels
        order = sorted(range(len(waves)), key=lambda index: len(waves[index]))
        self.groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.groups)

    def epoch(self, generator: torch.Generator | None = None):
        """Every batch once: in the order ``generator`` draws, or from the shortest to the longest without one."""
        count = len(self.groups)
        order = range(count) if generator is None else torch.randperm(count, generator=generator).tolist()
        for position in order:
            index = self.groups[position]
            wave, lengths = pad([self.waves[i] for i in index])
            yield Batch(wave, lengths, torch.tensor([self.labels[i] for i in index]), index)

"""Batches of utterances sorted by length, so that little of a batch is padding (the BiGRU-MHA paper's batching)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """``wave`` ``[B, N]``, zero past ``lengths`` ``[B]`` (samples), ``labels`` ``[B]``, ``index`` in the data set.

    ``size`` counts the utterances of the whole batch, of which these may be a share, even an empty one.
    """

    wave: Tensor
    lengths: Tensor
    labels: Tensor
    index: list[int]
    size: int

    def to(self, device: torch.device) -> "Batch":
        return self._replace(
            wave=self.wave.to(device), lengths=self.lengths.to(device), labels=self.labels.to(device)
        )


def pad(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Waves of ``[n]`` as one batch ``[B, N]`` and its lengths ``[B]``."""
    lengths = torch.tensor([len(wave) for wave in waves], dtype=torch.int64)
    if not waves:
        return torch.zeros(0, 0), lengths
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths


class LengthSortedBatches:
    """Batches of neighbours in length, each padded to its longest; the order of the batches is drawn per epoch.

    Args:
        waves: float32 ``[n]`` each.
        labels: a class index each.
        batch_size: utterances of a batch; the last one may have fewer.
        share: which of each batch's utterances, from the shortest to the longest, come; all of them by default.
    """

    def __init__(self, waves: Sequence[Tensor], labels: Sequence[int], batch_size: int, share: slice = slice(None)):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.waves, self.labels, self.share = waves, labels, share
        order = sorted(range(len(waves)), key=lambda index: len(waves[index]))
        self.groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.groups)

    def epoch(self, generator: torch.Generator | None = None):
        """Every batch once: in the order ``generator`` draws, or from the shortest to the longest without one."""
        count = len(self.groups)
        order = range(count) if generator is None else torch.randperm(count, generator=generator).tolist()
        for position in order:
            group = self.groups[position]
            index = group[self.share]
            wave, lengths = pad([self.waves[i] for i in index])
            labels = torch.tensor([self.labels[i] for i in index], dtype=torch.int64)
            yield Batch(wave, lengths, labels, index, len(group))

"""Batches of utterances of similar length, which need little padding, as in the BiGRU-MHA paper."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ser_fast.data.reading import read_groups
from ser_fast.data.waves import Selected
from ser_fast.data.waves import lengths as lengths_of


class Batch(NamedTuple):
    """A padded batch, or a rank's share of one.

    Attributes:
        wave: ``[B, N]``, zero past the lengths; or what ``edit`` in :meth:`LengthSortedBatches.epoch` made of them.
        lengths: ``[B]``, in samples.
        labels: a class index, or a row of values, each.
        index: position of each utterance in the part.
        size: utterances of the whole batch; B is smaller, or 0, in a share.
    """

    wave: Tensor
    lengths: Tensor
    labels: list
    index: list[int]
    size: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; copies to a GPU are asynchronous."""
        if device.type != "cuda":
            return self._replace(wave=self.wave.to(device), lengths=self.lengths.to(device))
        wave, lengths = (values.pin_memory().to(device, non_blocking=True) for values in (self.wave, self.lengths))
        return self._replace(wave=wave, lengths=lengths)


def pad(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return waves ``[n]`` as one batch ``[B, N]``, padded with zeros, and its lengths ``[B]``."""
    lengths = torch.tensor([len(wave) for wave in waves], dtype=torch.int64)
    if not waves:
        return torch.zeros(0, 0), lengths
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), lengths


class LengthSortedBatches:
    """Batches of utterances of similar length, each padded to its longest, shuffled each epoch.

    Args:
        waves: float32 ``[n]`` each; a list, or :class:`ser_fast.data.waves.Waves`, whose workers then read them.
        labels: a class index, or a row of values, each.
        batch_size: utterances of a batch; the last one may have fewer.
        share: slice of each batch, sorted by length, that this rank receives; all of it by default.
        bucket: 0 sorts the whole part by length, which gives the same batches in every epoch; n draws n batches of
            utterances at a time and sorts these, which gives other batches in every epoch.
        balance: repeat utterances so that in every epoch each class has as many as the largest one.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(
        self,
        waves: Sequence[Tensor],
        labels: Sequence,
        batch_size: int,
        share: slice = slice(None),
        *,
        bucket: int = 0,
        balance: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.waves, self.labels, self.batch_size, self.share = waves, labels, batch_size, share
        self.bucket, self.balance = bucket, balance
        self.lengths = lengths_of(waves)
        self.groups = self._grouped(range(len(waves)))

    def __len__(self) -> int:
        """Return the number of batches of a drawn epoch."""
        counts = Counter(self.labels).values() if self.balance else ()
        size = len(counts) * max(counts) if counts else len(self.waves)
        return math.ceil(size / self.batch_size)

    def epoch(self, generator: torch.Generator | None = None, edit: Callable | None = None, lazy: bool = False):
        """Yield every batch once.

        Args:
            generator: draws the order of the batches, and with ``bucket`` and ``balance`` their utterances; without
                one the batches come from the shortest to the longest, not balanced.
            edit: called with the waves of a batch and their index; returns tensors ``[n]`` that take their place.
            lazy: read a wave, in this process, only when ``edit`` accesses it.

        Yields:
            :class:`Batch`.
        """
        groups = self.groups
        if generator is not None:
            groups = self._drawn(generator)
            groups = [groups[position] for position in torch.randperm(len(groups), generator=generator).tolist()]
        own = [group[self.share] for group in groups]
        read = (Selected(self.waves, index) for index in own) if lazy else read_groups(self.waves, own)
        for waves, group, index in zip(read, groups, own):  # reading first, so that it comes to its own end
            wave, lengths = pad(waves if edit is None else edit(waves, index))
            yield Batch(wave, lengths, [self.labels[i] for i in index], index, len(group))

    def _grouped(self, index: Iterable[int]) -> list[list[int]]:
        order = sorted(index, key=self.lengths.__getitem__)
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _drawn(self, generator: torch.Generator) -> list[list[int]]:
        if not (self.bucket or self.balance):
            return self.groups
        index = self._balanced(generator) if self.balance else list(range(len(self.waves)))
        if not self.bucket:
            return self._grouped(index)
        drawn = [index[position] for position in torch.randperm(len(index), generator=generator).tolist()]
        size = self.bucket * self.batch_size
        buckets = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        return [group for bucket in buckets for group in self._grouped(bucket)]

    def _balanced(self, generator: torch.Generator) -> list[int]:
        """Return the index with every class repeated to the size of the largest one, the remainder drawn."""
        members = defaultdict(list)
        for index, label in enumerate(self.labels):
            members[label].append(index)
        most = max(map(len, members.values()))
        index = []
        for label in sorted(members):
            own = members[label]
            extra = torch.randperm(len(own), generator=generator)[: most % len(own)].tolist()
            index += own * (most // len(own)) + [own[position] for position in extra]
        return index

"""Batches: sorted by length, drawn from buckets, balanced over the classes."""

import pytest
import torch

from ser_fast.data.batches import LengthSortedBatches


def test_batches_are_sorted_by_length():
    waves = [torch.full((length,), float(length)) for length in (5, 1, 9, 2, 8, 3, 7)]
    batches = LengthSortedBatches(waves, list(range(7)), 3)
    assert batches.groups == [[1, 3, 5], [0, 6, 4], [2]]
    seen = []
    for batch in batches.epoch(torch.Generator().manual_seed(0)):
        assert batch.wave.shape == (len(batch.index), batch.lengths.max())
        for row, index in enumerate(batch.index):
            assert torch.equal(batch.wave[row, : batch.lengths[row]], waves[index])
            assert not batch.wave[row, batch.lengths[row] :].any() and batch.labels[row] == index
        seen += batch.index
    assert sorted(seen) == list(range(7))


def test_batches_drawn_from_buckets_cover_everything():
    waves = [torch.zeros(length) for length in torch.randint(1, 900, (40,)).tolist()]
    batches = LengthSortedBatches(waves, [0] * 40, 4, bucket=3)
    epochs = []
    for seed in range(2):
        groups = [batch.index for batch in batches.epoch(torch.Generator().manual_seed(seed))]
        assert sorted(index for group in groups for index in group) == list(range(40))
        assert all([len(waves[i]) for i in group] == sorted(len(waves[i]) for i in group) for group in groups)
        epochs.append(groups)
    assert sorted(epochs[0]) != sorted(epochs[1])
    assert [batch.index for batch in batches.epoch()] == batches.groups


@pytest.mark.parametrize("bucket", [0, 2])
def test_balanced_batches_repeat_smaller_classes(bucket):
    labels = [0] * 10 + [1] * 4 + [2]
    batches = LengthSortedBatches([torch.zeros(n + 1) for n in range(15)], labels, 4, bucket=bucket, balance=True)
    seen = [index for batch in batches.epoch(torch.Generator().manual_seed(0)) for index in batch.index]
    assert [sum(labels[i] == label for i in seen) for label in range(3)] == [10, 10, 10]
    assert set(seen) == set(range(15))
    assert max(seen.count(i) for i in range(10, 14)) == 3 and min(seen.count(i) for i in range(10, 14)) == 2
    assert sorted(i for batch in batches.epoch() for i in batch.index) == list(range(15))

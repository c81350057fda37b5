"""Losses and targets of classes."""

import pytest
import torch

from ser_fast.training.task import task_of


def test_l1_loss_is_between_softmax_and_one_hot():
    logits = torch.tensor([[2.0, 0.0]])
    p = logits.softmax(1)
    task = task_of(["x", "y"], "l1")
    assert task.loss(logits, task.targets([0])) == pytest.approx(float((1 - p[0, 0] + p[0, 1]) / 2))


def test_label_smoothing_spreads_every_target():
    logits, truth = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1])
    for name, by_hand in (
        ("cross_entropy", torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.3)),
        ("l1", (logits.softmax(1) - torch.tensor([[0.1, 0.8, 0.1]])).abs().mean()),
    ):
        task = task_of(["x", "y", "z"], name, 0.3)
        torch.testing.assert_close(task.loss(logits, task.targets([1])), by_hand)

"""What a model's outputs mean: classes, or one number. The losses, the predictions and what is measured on them."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.training import metrics

LOSSES = ("auto", "cross_entropy", "l1")


class Classification:
    """Logits ``[B, classes]`` against a distribution over the classes.

    Args:
        classes: their names.
        loss: "cross_entropy", which "auto" is, or "l1", the mean absolute difference of the softmax and the target.
        label_smoothing: the part of every target that is spread over all classes, in 0..1.
    """

    def __init__(self, classes: Sequence[str], loss: Literal["auto", "cross_entropy", "l1"], label_smoothing: float):
        self.classes, self.name, self.label_smoothing = list(classes), loss, label_smoothing
        self.outputs = len(classes)

    def targets(self, labels: Sequence[int]) -> Tensor:
        """``[B, classes]``, one-hot."""
        return F.one_hot(torch.tensor(labels, dtype=torch.int64), self.outputs).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.name == "l1":
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / self.outputs
            return F.l1_loss(logits.softmax(-1), smooth)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many are right, of a mixture its larger part."""
        return (logits.argmax(1) == targets.argmax(1)).sum()

    def predict(self, logits: Tensor) -> list[int]:
        return logits.argmax(1).tolist()

    def metrics(self, truth: Sequence[int], predicted: Sequence[int]) -> dict:
        return metrics.classification(truth, predicted, self.classes)

    def score(self, valid: dict) -> float:
        """Of a validation: UA, where a small loss breaks the ties of a small part."""
        return valid["recall"] - 1e-3 * min(valid["loss"], 100.0)

    def shown(self, label: int) -> str:
        return self.classes[label]


class Regression:
    """One number ``[B, 1]`` against a value; the loss is the mean absolute error.

    Args:
        low, high: the scale's ends, by which the measures know the scale.
    """

    outputs = 1

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high
        self.classes: list[str] = []

    def targets(self, labels: Sequence[float]) -> Tensor:
        """``[B, 1]``."""
        return torch.tensor(labels, dtype=torch.float32)[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs, targets)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many are on the right side of zero."""
        return ((outputs >= 0) == (targets >= 0)).sum()

    def predict(self, outputs: Tensor) -> list[float]:
        return outputs[:, 0].tolist()

    def metrics(self, truth: Sequence[float], predicted: Sequence[float]) -> dict:
        return metrics.regression(truth, predicted, self.low, self.high)

    def score(self, valid: dict) -> float:
        """Of a validation: the mean absolute error, less being better."""
        return -valid["mae"]

    def shown(self, label: float) -> str:
        return f"{label:g}"


Task = Classification | Regression


def task_of(classes: Sequence[str], labels: Sequence, loss: str, label_smoothing: float = 0.0) -> Task:
    """The task that a corpus sets.

    Raises:
        ValueError: a loss or a smoothing of classes for a corpus of values.
    """
    if classes:
        return Classification(classes, loss, label_smoothing)
    if loss == "cross_entropy":
        raise ValueError("loss is cross_entropy, but data has values, not classes; it must be auto or l1")
    if label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}, but data has values, not classes; it must be 0")
    # The two scales in use: CH-SIMS's -1 to 1 and MOSI's -3 to 3.
    end = 1.0 if max(map(abs, labels)) <= 1 else float(max(3, math.ceil(max(map(abs, labels)))))
    return Regression(-end, end)

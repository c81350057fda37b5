"""The two tasks, classification and regression: targets, losses, predictions and metrics."""

import statistics
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.training import metrics

LOSSES = ("auto", "cross_entropy", "l1")


class Classification:
    """Classification: the outputs are logits ``[B, classes]``, the targets distributions over the classes.

    Args:
        classes: names of the classes.
        loss: "cross_entropy", the same as "auto", or "l1", the mean absolute difference of softmax and target.
        label_smoothing: share of every target that is spread over all classes, in 0..1.

    Attributes:
        counts: whether :meth:`hits` counts correct predictions.
    """

    counts = True

    def __init__(self, classes: Sequence[str], loss: Literal["auto", "cross_entropy", "l1"], label_smoothing: float):
        self.classes, self.name, self.label_smoothing = list(classes), loss, label_smoothing
        self.outputs = len(classes)

    def targets(self, labels: Sequence[int]) -> Tensor:
        """Return one-hot targets ``[B, classes]`` of class indices."""
        return F.one_hot(torch.tensor(labels, dtype=torch.int64), self.outputs).float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        if self.name == "l1":
            smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / self.outputs
            return F.l1_loss(logits.softmax(-1), smooth)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the number of correct predictions; a mixed target counts as its largest class."""
        return (logits.argmax(1) == targets.argmax(1)).sum()

    def predict(self, logits: Tensor) -> list[int]:
        """Return the predicted class indices."""
        return logits.argmax(1).tolist()

    def probabilities(self, logits: Tensor) -> list[tuple[float, ...]]:
        """Return the probabilities of the classes for each row of logits."""
        return list(map(tuple, logits.softmax(1).tolist()))

    def begin(self, model: nn.Module, labels: Sequence[int]) -> None:
        """Prepare an untrained model for these training labels; does nothing."""

    def metrics(self, truth: Sequence[int], predicted: Sequence[int]) -> dict:
        """Return :func:`ser_fast.training.metrics.classification`."""
        return metrics.classification(truth, predicted, self.classes)

    def score(self, valid: dict) -> float:
        """Return the score of validation metrics, higher is better: UA, with ties broken by the loss."""
        return valid["recall"] - 1e-3 * min(valid["loss"], 100.0)

    def shown(self, label: int) -> str:
        """Return a label as tables show it."""
        return self.classes[label]


class Regression:
    """Regression: outputs and targets are values ``[B, 1]``; the loss is the mean absolute error.

    Args:
        scale: 1 or 3 for sentiment from -scale to scale, which decides the metrics; 0 for values of any other kind.
    """

    outputs = 1

    def __init__(self, scale: float):
        self.scale, self.counts = scale, scale > 0
        self.classes: list[str] = []

    def begin(self, model: nn.Module, labels: Sequence[float]) -> None:
        """Set the output's bias of an untrained model to the mean of these training labels."""
        nn.init.constant_(model.classifier.bias, statistics.fmean(labels))

    def targets(self, labels: Sequence[float]) -> Tensor:
        """Return targets ``[B, 1]`` of values."""
        return torch.tensor(labels, dtype=torch.float32)[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        return F.l1_loss(outputs, targets)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the number of outputs on the right side of zero, which means something on a sentiment scale only."""
        return ((outputs >= 0) == (targets >= 0)).sum()

    def predict(self, outputs: Tensor) -> list[float]:
        """Return the predicted values."""
        return outputs[:, 0].tolist()

    def probabilities(self, outputs: Tensor) -> list[tuple[float, ...]]:
        """Return an empty tuple for each output: values have no probabilities."""
        return [()] * len(outputs)

    def metrics(self, truth: Sequence[float], predicted: Sequence[float]) -> dict:
        """Return :func:`ser_fast.training.metrics.regression`."""
        return metrics.regression(truth, predicted, self.scale)

    def score(self, valid: dict) -> float:
        """Return the score of validation metrics, higher is better: minus the mean absolute error."""
        return -valid["mae"]

    def shown(self, label: float) -> str:
        """Return a value as tables show it."""
        return f"{label:g}"


Task = Classification | Regression


def task_of(classes: Sequence[str], loss: str, label_smoothing: float = 0.0, *, sentiment_scale: float = 0.0) -> Task:
    """Return the task of a corpus: classification, or regression without classes.

    Args:
        classes: names of the classes; empty for a regression.
        loss: one of ``LOSSES``.
        label_smoothing: share of every target that is spread over all classes, in 0..1.
        sentiment_scale: that of the corpus, see :class:`ser_fast.data.corpora.Corpus`.

    Raises:
        ValueError: a loss or a smoothing of classes is given for a corpus of values.
    """
    if classes:
        return Classification(classes, loss, label_smoothing)
    if loss == "cross_entropy":
        raise ValueError("loss is cross_entropy, but data has values, not classes; it must be auto or l1")
    if label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}, but data has values, not classes; it must be 0")
    return Regression(sentiment_scale)

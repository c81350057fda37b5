"""The two tasks, classification and regression: targets, losses, predictions and metrics."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.training import metrics

LOSSES = ("auto", "cross_entropy", "l1", "mse", "ccc")
_OF_CLASSES, _OF_VALUES = ("auto", "cross_entropy", "l1"), ("auto", "l1", "mse", "ccc")
_TINY = 1e-8  # far below the variance 1 of standardised targets


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

    def kept(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights of a model as a checkpoint keeps them, and nothing more: logits have no unit."""
        return weights, {}

    def restore(self, model: nn.Module, standardised: dict[str, Tensor]) -> None:
        """Prepare a model with the weights of a checkpoint for further training; does nothing."""

    def finish(self, model: nn.Module) -> None:
        """Prepare a trained model for its tests; does nothing."""

    def metrics(self, truth: Sequence[int], predicted: Sequence[int]) -> dict:
        """Return :func:`ser_fast.training.metrics.classification`."""
        return metrics.classification(truth, predicted, self.classes)

    def score(self, valid: dict) -> float:
        """Return the score of validation metrics, higher is better: UA, with ties broken by the loss."""
        return valid["recall"] - 1e-3 * min(valid["loss"], 100.0)

    def cells(self, label: int) -> tuple[str, ...]:
        """Return a label as a table shows it, in one cell."""
        return (self.classes[label],)


class Regression:
    """Regression of one or several values: labels and predictions are rows of values in the corpus's unit.

    While a model trains, its outputs ``[B, targets]`` are standardised, z = (value − mean) / std with the mean and
    the population's standard deviation of each target in the training part, and so are the targets of the loss.
    Training thus does not depend on the unit. Dividing the loss alone by std would not do: Adam changes a weight by
    about the learning rate whatever the scale of its gradient, so a last layer in a unit of std 20 would need 20
    times as many steps. Checkpoints and finished models hold std W and std b + mean as the last layer and give values
    in the corpus's unit (``kept``, ``finish``), in float32: of a mean of 10^6 std little precision is left.

    Args:
        scale: 1 or 3 for sentiment from -scale to scale, which decides the metrics; 0 for values of any other kind.
        names: names of the targets.
        loss: of the standardised values, a mean over the targets: "l1", the mean absolute error, the same as "auto";
            "mse", the mean squared error; or "ccc", 1 minus the concordance correlation of the batch
            (:func:`ser_fast.training.metrics.concordance`). A batch of a single utterance or of equal targets has the
            loss 1 and no gradient.

    Attributes:
        mean: mean of each target ``[targets]``, float64; 0 until ``begin``.
        std: standard deviation of each target ``[targets]``, float64; 1 for a constant one and until ``begin``.
        standardised: whether the model's outputs are standardised, as from ``begin`` to ``finish``.
    """

    def __init__(self, scale: float, names: Sequence[str] = ("value",), loss: str = "auto"):
        self.scale, self.counts = scale, scale > 0
        self.classes: list[str] = []
        self.names, self.name, self.outputs = list(names), loss, len(names)
        self.mean, self.std = torch.zeros(self.outputs).double(), torch.ones(self.outputs).double()
        self.standardised = self.fitted = False

    def begin(self, model: nn.Module, labels: Sequence) -> None:
        """Standardise by these training labels, and let the outputs of an untrained model start at their mean."""
        rows = self._rows(labels)
        self.mean, std = rows.mean(0), rows.std(0, correction=0)
        self.std = torch.where(rows.amax(0) > rows.amin(0), std, 1.0)
        self.standardised = self.fitted = True
        nn.init.zeros_(model.classifier.bias)

    def kept(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weights of a model in the corpus's unit, and what :meth:`restore` needs to train it on.

        Args:
            weights: state dict of the model.
        """
        if not self.standardised:
            return weights, {}
        weight, bias = (weights[f"classifier.{name}"].detach().cpu().clone() for name in ("weight", "bias"))
        scaled = {"weight": weight.double() * self.std[:, None], "bias": bias.double() * self.std + self.mean}
        inner = {"weight": weight, "bias": bias, "mean": self.mean, "std": self.std}
        return weights | {f"classifier.{name}": value.to(weight.dtype) for name, value in scaled.items()}, inner

    def restore(self, model: nn.Module, standardised: dict[str, Tensor]) -> None:
        """Prepare a model with the weights of a checkpoint for further training.

        Args:
            model: the model.
            standardised: second result of :meth:`kept`; empty in a checkpoint of a version that trained in the
                corpus's unit, and the model then continues to.
        """
        self.mean = standardised.get("mean", torch.zeros_like(self.mean))
        self.std = standardised.get("std", torch.ones_like(self.std))
        if standardised:
            model.classifier.load_state_dict({name: standardised[name] for name in ("weight", "bias")})

    def finish(self, model: nn.Module) -> None:
        """Let the outputs of a trained model be values in the corpus's unit; losses stay standardised."""
        model.load_state_dict(self.kept(model.state_dict())[0])
        self.standardised = False

    def targets(self, labels: Sequence) -> Tensor:
        """Return standardised targets ``[B, targets]`` of rows of values, or of a value each."""
        return ((self._rows(labels) - self.mean) / self.std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        if not self.standardised:
            outputs = ((outputs - self.mean.to(outputs.device)) / self.std.to(outputs.device)).to(targets.dtype)
        if self.name == "ccc":
            return 1 - _concordance(outputs, targets).mean()
        return F.mse_loss(outputs, targets) if self.name == "mse" else F.l1_loss(outputs, targets)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the number of outputs on the right side of zero, which means something on a sentiment scale only."""
        zero = -float(self.mean[0]) / float(self.std[0])
        return ((outputs >= (zero if self.standardised else 0)) == (targets >= zero)).sum()

    def predict(self, outputs: Tensor) -> list[tuple[float, ...]]:
        """Return the predicted rows of values, in the corpus's unit."""
        values = outputs.cpu().double()
        return list(map(tuple, (values * self.std + self.mean if self.standardised else values).tolist()))

    def probabilities(self, outputs: Tensor) -> list[tuple[float, ...]]:
        """Return an empty tuple for each output: values have no probabilities."""
        return [()] * len(outputs)

    def values(self, labels: Sequence) -> np.ndarray:
        """Return rows of values as float64 ``[N, targets]``, on a sentiment scale as its metrics clip them."""
        return metrics.on_scale(self._rows(labels).numpy(), self.scale).astype(float)

    def metrics(self, truth: Sequence, predicted: Sequence) -> dict:
        """Return :func:`ser_fast.training.metrics.regression`, or that of several targets.

        Args:
            truth: true values, a row or, for a single target, a number of each utterance.
            predicted: predicted values.
        """
        truth, predicted = self._rows(truth).numpy(), self._rows(predicted).numpy()
        if self.outputs == 1:
            return metrics.regression(truth[:, 0], predicted[:, 0], self.scale)
        return metrics.regressions(truth, predicted, self.names, self.std.tolist() if self.fitted else None)

    def score(self, valid: dict) -> float:
        """Return the score of validation metrics, higher is better.

        It is the mean CCC if that is the loss, else minus the mean absolute error, for several targets in units of
        their deviations in the training part, as far as these are known.
        """
        return valid["ccc"] if self.name == "ccc" else -valid.get("standardised_mae", valid["mae"])

    def cells(self, label: Sequence[float]) -> tuple[str, ...]:
        """Return a row of values as a table shows it, a cell each, precise enough for float32."""
        return tuple(f"{value:.9g}" for value in label)

    def _rows(self, labels: Sequence) -> Tensor:
        return torch.as_tensor(np.asarray(labels, dtype=float)).reshape(-1, self.outputs)


def _concordance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return Lin's coefficient of each column of ``[B, targets]``; 0, with a finite gradient, if one is constant."""
    x, y = outputs.float(), targets.float()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    return 2 * (x * y).mean(0) / (x.square().mean(0) + y.square().mean(0) + (mean_x - mean_y).square() + _TINY)


Task = Classification | Regression


def task_of(
    classes: Sequence[str],
    loss: str,
    label_smoothing: float = 0.0,
    *,
    sentiment_scale: float = 0.0,
    targets: Sequence[str] = ("value",),
) -> Task:
    """Return the task of a corpus: classification, or regression without classes.

    Args:
        classes: names of the classes; empty for a regression.
        loss: one of ``LOSSES``.
        label_smoothing: share of every target that is spread over all classes, in 0..1.
        sentiment_scale: that of the corpus, see :class:`ser_fast.data.corpora.Corpus`.
        targets: names of the values of a regression.

    Raises:
        ValueError: a loss or a smoothing of classes is given for a corpus of values, or a loss of values for classes.
    """
    if classes:
        found = f"loss is {loss}, but data has classes, not values"
        require(loss in _OF_CLASSES, found, f"one of {', '.join(_OF_CLASSES)}")
        return Classification(classes, loss, label_smoothing)
    found = f"loss is {loss}, but data has values, not classes"
    require(loss in _OF_VALUES, found, f"one of {', '.join(_OF_VALUES)}")
    if label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}, but data has values, not classes; it must be 0")
    return Regression(sentiment_scale, targets, loss)

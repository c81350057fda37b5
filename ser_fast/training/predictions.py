"""The table of a run's predictions, ``predictions.csv``."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ser_fast.data import tables
from ser_fast.data.dataset import Dataset
from ser_fast.data.tables import from_cell
from ser_fast.training.task import Task

_NAMES = ("name", "speaker", "truth", "predicted")


class Prediction(NamedTuple):
    """A tested utterance with its class or value and the predicted one, as the table shows them.

    ``probabilities`` are those of the classes, in their order; empty for a regression or a table of an older version.
    """

    name: str
    speaker: str
    truth: str
    predicted: str
    probabilities: tuple[float, ...] = ()


def described(dataset: Dataset, index: Sequence[int], task: Task, outputs: Tensor) -> list[Prediction]:
    """Return the predictions for some utterances of a dataset.

    Args:
        dataset: gives names, speakers and labels.
        index: numbers of the utterances in the dataset.
        task: defines prediction and probabilities.
        outputs: ``[N, outputs]`` of the model, in the order of ``index``.
    """
    return [
        Prediction(dataset.names[i], dataset.speakers[i], task.shown(dataset.labels[i]), task.shown(value), row)
        for i, value, row in zip(index, task.predict(outputs), task.probabilities(outputs), strict=True)
    ]


def to_csv(predictions: list[Prediction], classes: Sequence[str]) -> str:
    """Return the table with a header row.

    Args:
        predictions: the rows.
        classes: names of the classes, whose probabilities are columns ``p_CLASS`` of 6 significant digits.
    """
    header = [*_NAMES, *(f"p_{name}" for name in classes)]
    return tables.to_csv([header, *([*row[:4], *(f"{p:.6g}" for p in row.probabilities)] for row in predictions)])


def read_csv(path: Path, classes: list[str]) -> list[Prediction]:
    """Return the rows of a table that :func:`to_csv` made, also of one without probabilities.

    Args:
        path: the table in the folder of a run.
        classes: names that ``truth`` and ``predicted`` may have; numbers if empty.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a column is missing, or a class, value or probability is invalid.
    """
    with open(path, encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        header = table.fieldnames or ()
        columns = [f"p_{name}" for name in classes]
        if not any(name in header for name in columns):  # a table of an older version
            columns = []
        for name in (*_NAMES, *columns):
            if name not in header:
                raise damaged(path, f"column '{name}' is missing")
        rows = [{name: from_cell(row[name] or "") for name in (*_NAMES, *columns)} for row in table]
    allowed = f"one of {', '.join(classes)}" if classes else "a number"
    for number, row in enumerate(rows, 1):
        for name in ("truth", "predicted"):
            if not (row[name] in classes if classes else _is_number(row[name])):
                raise damaged(path, f"{name} of row {number} is {row[name]!r}, which must be {allowed}")
        for name in columns:
            if not (_is_number(row[name]) and 0 <= float(row[name]) <= 1):
                raise damaged(path, f"{name} of row {number} is {row[name]!r}, which must be in 0..1")
    return [Prediction(*(row[name] for name in _NAMES), tuple(float(row[name]) for name in columns)) for row in rows]


def damaged(path: Path, fault: str) -> ValueError:
    """Return the error for an unusable file in the folder of a finished run."""
    return ValueError(f"{path}: {fault}; remove {path.parent} to run this fold again")


def _is_number(text: str | None) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True

"""The table of a run's predictions, ``predictions.csv``."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ser_fast.data import tables
from ser_fast.data.dataset import Dataset
from ser_fast.data.tables import from_cell
from ser_fast.training.task import Task

_NAMES = ("name", "speaker")


class Prediction(NamedTuple):
    """A tested utterance with its class or value and the predicted one, as the table shows them.

    ``truth`` and ``predicted`` of a regression of several targets are tuples. ``probabilities`` are those of the
    classes, in their order; empty for a regression or a table of an older version.
    """

    name: str
    speaker: str
    truth: str | tuple[str, ...]
    predicted: str | tuple[str, ...]
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
        Prediction(
            dataset.names[i],
            dataset.speakers[i],
            _joined(task.cells(dataset.labels[i])),
            _joined(task.cells(value)),
            row,
        )
        for i, value, row in zip(index, task.predict(outputs), task.probabilities(outputs), strict=True)
    ]


def to_csv(predictions: list[Prediction], classes: Sequence[str], targets: Sequence[str] = ()) -> str:
    """Return the table with a header row.

    Args:
        predictions: the rows.
        classes: names of the classes, whose probabilities are columns ``p_CLASS`` of 6 significant digits.
        targets: names of the values of a regression; several have the columns ``truth_TARGET``, ``predicted_TARGET``.
    """
    header = [*_NAMES, *itertools.chain(*_pairs(targets)), *(f"p_{name}" for name in classes)]
    return tables.to_csv([header, *map(_cells, predictions)])


def read_csv(path: Path, classes: list[str], targets: Sequence[str] = ()) -> list[Prediction]:
    """Return the rows of a table that :func:`to_csv` made, also of one without probabilities.

    Args:
        path: the table in the folder of a run.
        classes: names that ``truth`` and ``predicted`` may have; numbers if empty.
        targets: as in :func:`to_csv`.

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
        pairs = _pairs(targets)
        wanted = (*_NAMES, *itertools.chain(*pairs), *columns)
        for name in wanted:
            if name not in header:
                raise damaged(path, f"column '{name}' is missing")
        rows = [{name: from_cell(row[name] or "") for name in wanted} for row in table]
    allowed = f"one of {', '.join(classes)}" if classes else "a number"
    for number, row in enumerate(rows, 1):
        for name in itertools.chain(*pairs):
            if not (row[name] in classes if classes else _is_number(row[name])):
                raise damaged(path, f"{name} of row {number} is {row[name]!r}, which must be {allowed}")
        for name in columns:
            if not (_is_number(row[name]) and 0 <= float(row[name]) <= 1):
                raise damaged(path, f"{name} of row {number} is {row[name]!r}, which must be in 0..1")
    return [
        Prediction(
            *(row[name] for name in _NAMES),
            *(_joined([row[name] for name in names]) for names in zip(*pairs)),
            tuple(float(row[name]) for name in columns),
        )
        for row in rows
    ]


def as_rows(predictions: Sequence[Prediction]) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Return the true and the predicted rows of values of a regression."""
    truth, predicted = ([_split(row[column]) for row in predictions] for column in (2, 3))
    return [tuple(map(float, row)) for row in truth], [tuple(map(float, row)) for row in predicted]


def _pairs(targets: Sequence[str]) -> list[tuple[str, str]]:
    """Return the columns of truth and prediction, a pair for each of several targets."""
    if len(targets) < 2:
        return [("truth", "predicted")]
    return [(f"truth_{name}", f"predicted_{name}") for name in targets]


def _cells(row: Prediction) -> list[str]:
    values = itertools.chain(*zip(_split(row.truth), _split(row.predicted)))
    return [row.name, row.speaker, *values, *(f"{p:.6g}" for p in row.probabilities)]


def _joined(cells: Sequence[str]) -> str | tuple[str, ...]:
    return cells[0] if len(cells) == 1 else tuple(cells)


def _split(cell: str | tuple[str, ...]) -> tuple[str, ...]:
    return (cell,) if isinstance(cell, str) else cell


def damaged(path: Path, fault: str) -> ValueError:
    """Return the error for an unusable file in the folder of a finished run."""
    return ValueError(f"{path}: {fault}; remove {path.parent} to run this fold again")


def _is_number(text: str | None) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True

"""The table of a run's predictions, ``predictions.csv``."""

import csv
from pathlib import Path
from typing import NamedTuple

from ser_fast.data import tables
from ser_fast.data.tables import from_cell


class Prediction(NamedTuple):
    """A tested utterance with its class or value and the predicted one, as the table shows them."""

    name: str
    speaker: str
    truth: str
    predicted: str


def to_csv(predictions: list[Prediction]) -> str:
    """Return the table with a header row."""
    return tables.to_csv([Prediction._fields, *predictions])


def read_csv(path: Path, classes: list[str]) -> list[Prediction]:
    """Return the rows of a table that :func:`to_csv` made.

    Args:
        path: the table in the folder of a run.
        classes: names that ``truth`` and ``predicted`` may have; numbers if empty.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a column is missing, or a class or value is invalid.
    """
    with open(path, encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        for name in Prediction._fields:
            if name not in (table.fieldnames or ()):
                raise damaged(path, f"column '{name}' is missing")
        rows = [Prediction(*(from_cell(row[name] or "") for name in Prediction._fields)) for row in table]
    allowed = f"one of {', '.join(classes)}" if classes else "a number"
    for number, row in enumerate(rows, 1):
        for name in ("truth", "predicted"):
            value = getattr(row, name)
            if not (value in classes if classes else _is_number(value)):
                raise damaged(path, f"{name} of row {number} is {value!r}, which must be {allowed}")
    return rows


def damaged(path: Path, fault: str) -> ValueError:
    """Return the error for an unusable file in the folder of a finished run."""
    return ValueError(f"{path}: {fault}; remove {path.parent} to run this fold again")


def _is_number(text: str | None) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True

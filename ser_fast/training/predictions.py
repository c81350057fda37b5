"""The table of a run's predictions, ``predictions.csv``."""

import csv
import io
from pathlib import Path
from typing import NamedTuple


class Prediction(NamedTuple):
    """A tested utterance with its class or value and the predicted one, as the table shows them."""

    name: str
    speaker: str
    truth: str
    predicted: str


def to_csv(predictions: list[Prediction]) -> str:
    """Return the table with a header row."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([Prediction._fields, *predictions])
    return table.getvalue()


def read_csv(path: Path) -> list[Prediction]:
    """Return the rows of a table that :func:`to_csv` made.

    Raises:
        OSError: the file cannot be read.
        KeyError: a column is missing.
    """
    with open(path, encoding="utf-8", newline="") as file:
        return [Prediction(*(row[name] for name in Prediction._fields)) for row in csv.DictReader(file)]

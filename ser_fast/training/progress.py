"""State of a run after some epochs, as its checkpoint keeps it."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ser_fast.training.checkpoint import CheckpointError

_IN_EVERY_ROW = ("epoch", "loss", "utterances", "seconds")


@dataclass
class Progress:
    """State of a run after some epochs, kept in the checkpoint.

    Args:
        corpus: digest of the dataset.
        epoch: epochs that are done.
        best_epoch: the epoch with the best score, from 1.
        best_score: its score.
        rows: metrics of each epoch.
        parts: digest of the split; "" in a run of a version that did not keep it.
        features: what computed the features that take the place of waves; empty if there are none.
    """

    corpus: str
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    rows: list[dict] = field(default_factory=list)
    parts: str = ""
    features: dict = field(default_factory=dict)


def read_progress(path: Path, values: dict[str, Any]) -> Progress:
    """Return the progress that a checkpoint, written after a whole epoch, holds.

    Args:
        path: the checkpoint, for error messages.
        values: its ``progress``.

    Raises:
        CheckpointError: a value is missing, unknown, of another type or out of range.
    """
    names = {entry.name for entry in fields(Progress)}
    if not names - {"parts", "features"} <= values.keys() <= names:
        raise CheckpointError(f"{path}: progress has {sorted(values)}; it must have {', '.join(sorted(names))}")
    found = Progress(**values)
    count = len(found.rows) if isinstance(found.rows, list) else -1
    for name, good, allowed in (
        ("corpus", isinstance(found.corpus, str), "a text"),
        ("parts", isinstance(found.parts, str), "a text"),
        ("features", isinstance(found.features, dict), "an object"),
        ("epoch", type(found.epoch) is int and found.epoch == count >= 1, "the number of rows, at least 1"),
        ("best_epoch", type(found.best_epoch) is int and 1 <= found.best_epoch <= count, f"in 1..{count}"),
        ("best_score", _is_finite(found.best_score), "a finite number"),
    ):
        if not good:
            raise CheckpointError(f"{path}: progress has the {name} {getattr(found, name)!r}; it must be {allowed}")
    validated = {"score", "valid_loss"} & (found.rows[0].keys() if isinstance(found.rows[0], dict) else set())
    for number, row in enumerate(found.rows, 1):
        good = isinstance(row, dict) and {*_IN_EVERY_ROW, *validated} <= row.keys()
        if not (good and row["epoch"] == number and all(map(_is_finite, row.values()))):
            wanted = ", ".join(sorted({*_IN_EVERY_ROW, *validated}))
            raise CheckpointError(
                f"{path}: progress has {row!r} as row {number}; it must have the epoch {number} and finite {wanted}"
            )
    return found


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

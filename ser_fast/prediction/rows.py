"""Results as flat rows, and the columns of their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ser_fast.data.extras import import_extra
from ser_fast.data.files import printable
from ser_fast.data.utterance import VALUE
from ser_fast.prediction.listing import Item
from ser_fast.prediction.stream import Found

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Columns:
    """Columns of a table of results.

    ``file``; ``start`` and ``end`` in seconds where parts of files are predicted; ``seconds`` of audio; ``label`` and
    ``p_CLASS``, the probability of each class, or the value of each target, such as ``value`` or ``arousal``;
    ``flag``, keys of ``ser_fast.data.flags.FLAGS``;
    ``error``, why there is no result; ``embedding``. What does not apply is null.

    Args:
        classes: names of the classes; empty for a regression.
        spans: whether there are ``start`` and ``end``.
        embeddings: whether there is ``embedding``.
        targets: names of the values of a regression.
    """

    classes: tuple[str, ...]
    spans: bool = False
    embeddings: bool = False
    targets: tuple[str, ...] = (VALUE,)

    @property
    def numbers(self) -> list[str]:
        """Return the names of the columns of the model's outputs."""
        return [f"p_{printable(name)}" for name in self.classes] or list(self.targets)

    @property
    def names(self) -> list[str]:
        """Return the names of all columns in their order."""
        return list(self.row(Found(Item(""), None, None, "")))

    def row(self, found: Found) -> dict[str, Any]:
        """Return a result as a row."""
        item, clip, output, error = found
        row: dict[str, Any] = {"file": printable(item.file)}
        if self.spans:
            row |= zip(("start", "end"), (item.start, item.end) if clip is None else (clip.start, clip.end))
        row["seconds"] = None if clip is None else clip.seconds
        if self.classes:
            row["label"] = None if output is None else printable(self.classes[output.best])
        row |= zip(self.numbers, [None] * len(self.numbers) if output is None else output.values)
        row |= {"flag": "" if clip is None else clip.flag, "error": printable(error) or None}
        if self.embeddings:
            row["embedding"] = None if output is None else output.embedding
        return row

    def schema(self) -> pyarrow.Schema:
        """Return the schema of the rows in Arrow and Parquet."""
        pa = import_extra("pyarrow", "a .parquet", "scale")
        kinds = {"start": pa.float64(), "end": pa.float64(), "seconds": pa.float64()}
        kinds |= dict.fromkeys(self.numbers, pa.float32()) | {"embedding": pa.list_(pa.float32())}
        return pa.schema([(name, kinds.get(name, pa.string())) for name in self.names])

"""Counts and times of a prediction run."""

from collections import Counter
from dataclasses import dataclass, field, fields

from ser_fast.data.failures import by_reason
from ser_fast.data.files import printable
from ser_fast.prediction.listing import Item
from ser_fast.prediction.stream import Found, Read

_SHOWN = 5


@dataclass
class Summary:
    """Counts and times; they add up over parts and processes.

    Args:
        files: listed files, or parts of files, that are done.
        rows: results, of which a file has several in segments.
        failed: files with an error.
        unpredicted: rows whose flag says that there is nothing to predict.
        audio: seconds of audio that were read.
        reading: seconds of reading, summed over processes.
        model: seconds in the model.
        writing: seconds of making and writing rows.
        wall: seconds from the start to the end.
        reasons: number of errors of each reason.
        errors: the first five errors.
    """

    files: int = 0
    rows: int = 0
    failed: int = 0
    unpredicted: int = 0
    audio: float = 0.0
    reading: float = 0.0
    model: float = 0.0
    writing: float = 0.0
    wall: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _failed: Item | None = field(default=None, repr=False)

    def add_read(self, block: Read) -> None:
        """Count a block that was read."""
        self.reading += block.seconds
        self.files += not block.more

    def add(self, found: Found) -> None:
        """Count a result."""
        self.rows += 1
        if found.clip is not None:
            self.audio += found.clip.seconds
        if found.error:
            message = f"{printable(found.item.file)}: {found.error}"
            self.failed += found.item is not self._failed
            self._failed = found.item
            self.reasons[by_reason([message])[0].partition(" ")[2]] += 1
            self.errors += [message] * (len(self.errors) < _SHOWN)
        elif found.output is None:
            self.unpredicted += 1

    def by_reason(self) -> list[str]:
        """Return the number of each reason, the most frequent first."""
        lines = [f"{count} {reason}" for reason, count in self.reasons.most_common(_SHOWN)]
        rest = len(self.reasons) - _SHOWN
        return lines + ([f"{rest} other reasons"] if rest > 0 else [])

    def as_dict(self) -> dict:
        """Return the summary in types that JSON has."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "_failed"}

    @classmethod
    def from_dict(cls, values: dict) -> "Summary":
        """Return the summary of :meth:`as_dict`."""
        return cls(**values | {"reasons": Counter(values["reasons"])})

    def merge(self, other: "Summary") -> None:
        """Add the counts and times of another summary."""
        for name in ("files", "rows", "failed", "unpredicted", "audio", "reading", "model", "writing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wall = max(self.wall, other.wall)
        self.reasons.update(other.reasons)
        self.errors += other.errors[: _SHOWN - len(self.errors)]

"""Counts and times of a prediction run."""

from collections import Counter
from dataclasses import dataclass, field

from ser_fast.data.failures import Tally
from ser_fast.data.files import printable
from ser_fast.prediction.listing import Item
from ser_fast.prediction.stream import Found, Read


@dataclass
class Counts:
    """Counts and times of :class:`Summary`, in types that JSON has.

    Args:
        files: listed files, or parts of files, that are done.
        rows: results, of which a file has several in segments.
        failed: files with an error.
        unpredicted: rows whose flag says that there is nothing to predict.
        audio: seconds of audio that were read.
        reading: seconds of reading, summed over processes.
        model: seconds in the model.
        writing: seconds of making and writing rows.
    """

    files: int = 0
    rows: int = 0
    failed: int = 0
    unpredicted: int = 0
    audio: float = 0.0
    reading: float = 0.0
    model: float = 0.0
    writing: float = 0.0


@dataclass
class Summary(Counts):
    """Counts, times and errors; they add up over parts and processes.

    Args:
        wall: seconds from the start to the end.
        errors: the errors.
    """

    wall: float = 0.0
    errors: Tally = field(default_factory=Tally)
    _failed: Item | None = None  # the last item with an error

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
            self.failed += found.item is not self._failed
            self._failed = found.item
            self.errors.add(f"{printable(found.item.file)}: {found.error}")
        elif found.output is None:
            self.unpredicted += 1

    def merge(self, other: "Summary") -> None:
        """Add the counts, times and errors of another summary."""
        for name in Counts.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wall = max(self.wall, other.wall)
        self.errors.merge(other.errors)

    def as_dict(self) -> dict:
        """Return the summary, but for ``wall``, in types that JSON has."""
        counts = {name: getattr(self, name) for name in Counts.__dataclass_fields__}
        return counts | {"errors": vars(self.errors)}

    @classmethod
    def from_dict(cls, values: dict) -> "Summary":
        """Return the summary of :meth:`as_dict`."""
        counts = {name: values[name] for name in Counts.__dataclass_fields__}
        errors = Tally()
        vars(errors).update(values["errors"], reasons=Counter(values["errors"]["reasons"]))
        return cls(**counts, errors=errors)

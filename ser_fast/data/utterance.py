"""Utterances with a speaker and a label or a value, and corpora of them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ser_fast._require import require
from ser_fast.data.files import printable

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance, on disk (``path``) or in memory (``samples``).

    Name, speaker and label, which are often parts of a path, are stored :func:`ser_fast.data.files.printable`.

    Args:
        name: name of the utterance.
        speaker: name of the speaker.
        label: name of the class; ``""`` for a regression.
        path: the audio file.
        start, end: in seconds within the file; None is its beginning or its end.
        samples: float32 ``[N]``, instead of a file.
        sample_rate: sample rate, in hertz.
        value: the target of a regression.
        part: "train", "valid" or "test" in the corpus's own division.
    """

    name: str
    speaker: str
    label: str
    path: Path | None = None
    start: float | None = None
    end: float | None = None
    samples: torch.Tensor | None = None
    sample_rate: int | None = None
    value: float | None = None
    part: str | None = None

    def __post_init__(self):
        for name in ("name", "speaker", "label"):
            object.__setattr__(self, name, printable(getattr(self, name)))


@dataclass(frozen=True)
class Corpus:
    """A named list of utterances.

    Args:
        name: name of the corpus.
        utterances: the utterances.
        classes: names of the classes in the order of their indices; empty for a regression.
        passed_over: sentence about files in the corpus's folder that were not taken, of
            :func:`ser_fast.data.files.passed_over`; ``""`` if there are none.

    Raises:
        ValueError: the same section of a file occurs twice, so that it could be in the training and in the test part;
            a label is not among the classes, or has a value beside it; a value is missing or not finite; a part has
            another name, or some utterances have none.
    """

    name: str
    utterances: list[Utterance]
    classes: list[str]
    passed_over: str = ""

    def __post_init__(self):
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "classes", [printable(name) for name in self.classes])
        seen: dict[tuple, str] = {}
        for utterance in self.utterances:
            self._check(utterance)
            if utterance.path is None:
                continue
            key = (os.path.realpath(utterance.path), utterance.start, utterance.end)
            found = f"corpus {self.name!r} lists {utterance.name} and {seen.get(key)}, the same audio"
            require(key not in seen, found, "listed once")
            seen[key] = utterance.name
        without = [utterance.name for utterance in self.utterances if utterance.part is None]
        if 0 < len(without) < len(self.utterances):
            raise ValueError(
                f"corpus {self.name!r} has {len(without)} of {len(self.utterances)} utterances without a part, such "
                f"as {without[0]}; it must be none or all"
            )

    def _check(self, utterance: Utterance) -> None:
        label, value, part = utterance.label, utterance.value, utterance.part
        place = f"corpus {self.name!r}: {utterance.name} has the"
        if self.classes:
            require(value is None, f"{place} value {value}", "None in a corpus of classes")
            require(label in self.classes, f"{place} label {label!r}", f"one of {', '.join(self.classes)}")
        else:
            finite = value is not None and math.isfinite(value)
            require(finite, f"{place} value {value}", "a finite number, for the corpus has no classes")
            require(not label, f"{place} label {label!r}", "empty beside a value")
        require(part in (None, *PARTS), f"{place} part {part!r}", f"one of {', '.join(PARTS)}")

    @property
    def speakers(self) -> list[str]:
        """Return the names of the speakers, sorted."""
        return sorted({utterance.speaker for utterance in self.utterances})

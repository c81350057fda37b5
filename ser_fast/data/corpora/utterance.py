"""What every corpus yields: utterances with a speaker and a label or a value."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance, on disk (``path``) or in memory (``samples``).

    ``start`` and ``end`` are seconds within the file; ``None`` means its beginning or its end.
    ``samples`` is a float32 tensor ``[N]`` at ``sample_rate`` hertz. ``value`` is what regression predicts, and
    ``label`` is ``""`` then. ``part`` is ``"train"``, ``"valid"`` or ``"test"`` where the corpus has a division of
    its own.
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


@dataclass(frozen=True)
class Corpus:
    """A named list of utterances; ``classes`` fixes the order of the labels everywhere.

    Without classes it is a corpus for regression, and every utterance has a value.

    Raises:
        ValueError: the same stretch of the same file twice, which a split could put in training and in the test;
            a label that is not among the classes, or beside a value; a value that is missing or not finite; parts
            other than the three, or not for all utterances.
    """

    name: str
    utterances: list[Utterance]
    classes: list[str]

    def __post_init__(self):
        seen: dict[tuple, str] = {}
        for utterance in self.utterances:
            self._check_target(utterance)
            if utterance.part not in (None, *PARTS):
                self._refuse(utterance, f"the part {utterance.part!r}", ", ".join(PARTS))
            if utterance.path is None:
                continue
            key = (os.path.realpath(utterance.path), utterance.start, utterance.end)
            if key in seen:
                raise ValueError(f"corpus {self.name!r} lists {utterance.name} and {seen[key]}, the same audio; "
                                 "allowed: once")  # fmt: skip
            seen[key] = utterance.name
        without = [utterance.name for utterance in self.utterances if utterance.part is None]
        if 0 < len(without) < len(self.utterances):
            raise ValueError(
                f"corpus {self.name!r} has {len(without)} of {len(self.utterances)} utterances without a part, such "
                f"as {without[0]}; allowed: none or all"
            )

    def _check_target(self, utterance: Utterance) -> None:
        label, value = utterance.label, utterance.value
        if self.classes:
            if value is not None:
                self._refuse(utterance, f"the value {value}", "none in a corpus of classes")
            if label not in self.classes:
                self._refuse(utterance, f"the label {label!r}", f"one of {', '.join(self.classes)}")
        else:
            if value is None or not math.isfinite(value):
                self._refuse(utterance, f"the value {value}", "a finite number, for the corpus has no classes")
            if label:
                self._refuse(utterance, f"the label {label!r}", "none beside a value")

    def _refuse(self, utterance: Utterance, found: str, allowed: str) -> None:
        raise ValueError(f"corpus {self.name!r}: {utterance.name} has {found}, allowed: {allowed}")

    @property
    def speakers(self) -> list[str]:
        return sorted({utterance.speaker for utterance in self.utterances})

"""What every corpus yields: utterances with a speaker and a label."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance, on disk (``path``) or in memory (``samples``).

    ``start`` and ``end`` are seconds within the file; ``None`` means its beginning or its end.
    ``samples`` is a float32 tensor ``[N]`` at ``sample_rate`` hertz.
    """

    name: str
    speaker: str
    label: str
    path: Path | None = None
    start: float | None = None
    end: float | None = None
    samples: torch.Tensor | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A named list of utterances; ``classes`` fixes the order of the labels everywhere.

    Raises:
        ValueError: the same stretch of the same file twice, which a split could put in training and in the test.
    """

    name: str
    utterances: list[Utterance]
    classes: list[str]

    def __post_init__(self):
        seen: dict[tuple, str] = {}
        for utterance in self.utterances:
            if utterance.path is None:
                continue
            key = (os.path.realpath(utterance.path), utterance.start, utterance.end)
            if key in seen:
                raise ValueError(f"corpus {self.name!r} lists {utterance.name} and {seen[key]}, the same audio; "
                                 "allowed: once")  # fmt: skip
            seen[key] = utterance.name

    @property
    def speakers(self) -> list[str]:
        return sorted({utterance.speaker for utterance in self.utterances})

"""Utterances with a speaker and a label or a value, and corpora of them."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ser_fast._require import require
from ser_fast.data.files import printable
from ser_fast.data.sources import Source, identity, state

PARTS = ("train", "valid", "test")
UNKNOWN = "unknown"  # name of the speaker where a corpus tells none
VALUE = "value"  # name of the target of a corpus that names none
# Columns of tables of utterances, predictions and results; a target of such a name would hide one.
RESERVED = (
    "file", "name", "speaker", "label", "group", "start", "end", "part", "sentiment_scale", "seconds", "truth",
    "predicted", "flag", "error", "embedding",
)  # fmt: skip
_SHOWN = 20


def check_targets(names: Sequence[str]) -> None:
    """Refuse names of targets that a table of predictions cannot have as columns.

    Raises:
        ValueError: a name is empty, not printable, reserved or there twice.

    Example:
        >>> check_targets(["arousal", "valence"])
        >>> check_targets(["speaker"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: targets names 'speaker'; it must be none of file, name, speaker, label, ...
    """
    for number, name in enumerate(names):
        good = isinstance(name, str) and name.strip() == name != "" and printable(name) == name
        require(good, f"targets names {name!r}", "a printable text without blanks around it")
        require(name not in RESERVED, f"targets names {name!r}", f"none of {', '.join(RESERVED)}")
        require(name not in names[:number], f"targets names {name!r} twice", "there once")


@dataclass(frozen=True)
class Utterance:
    """One labelled utterance: a file (``path``), a part of one (``source``) or in memory (``samples``).

    Name, speaker and label, which are often parts of a path, are stored ``ser_fast.data.files.printable``.

    Args:
        name: name of the utterance.
        speaker: name of the speaker.
        label: name of the class; ``""`` for a regression.
        path: the audio file.
        start, end: in seconds within the file; None is its beginning or its end.
        samples: float32 ``[N]``, instead of a file.
        sample_rate: sample rate, in hertz.
        value: the target of a regression.
        values: further numbers by their names, such as arousal and valence, which a corpus may name as its targets.
        part: "train", "valid" or "test" in the corpus's own division.
        source: audio inside another file, such as a member of a tar archive, instead of a file.
        group: name of what is held out together, such as a recording session; None in a corpus without groups.
        folds: "train", "valid" or "test" in each of the corpus's own folds, "" in a fold that lacks the utterance;
            empty in a corpus without folds.
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
    source: Source | None = None
    group: str | None = None
    folds: Sequence[str] = ()
    values: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        for name in ("name", "speaker", "label"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        if self.group is not None:
            object.__setattr__(self, "group", printable(self.group))

    def target(self, name: str) -> float | None:
        """Return the number of this name, ``value`` itself for "value"; None if there is none."""
        return self.value if name == VALUE else self.values.get(name)

    @property
    def audio(self) -> Path | Source | None:
        """Return what :func:`ser_fast.data.audio.read_audio` reads; None for samples in memory."""
        return self.path if self.source is None else self.source

    def key(self) -> tuple[str, int, int, float | None, float | None]:
        """Return a key for caches: identity, size and time of change of the audio, start and end.

        Samples in memory are identified by their SHA-256.

        Raises:
            OSError: the file does not exist.
        """
        if self.samples is not None:
            wave = self.samples.detach().cpu().contiguous().numpy()
            what = hashlib.sha256(wave.tobytes()).hexdigest(), len(wave), self.sample_rate or 0
        else:
            what = state(self.audio)
        return *what, self.start, self.end


@dataclass(frozen=True)
class Corpus:
    """A named list of utterances.

    Args:
        name: name of the corpus.
        utterances: the utterances.
        classes: names of the classes in the order of their indices; empty for a regression.
        passed_over: sentence about files in the corpus's folder that were not taken, of
            ``ser_fast.data.files.passed_over``; ``""`` if there are none.
        notes: more sentences about how the corpus was read, such as classes that were merged.
        sentiment_scale: 1 if the values are sentiment from -1 to 1, as in CH-SIMS, 3 from -3 to 3, as in MOSI; shares
            such as Acc-2 are then measured. 0 for values of any other kind.
        test_data: name of the corpus that all utterances of the test part are from, if it is another one; ``""`` if
            not.
        targets: names of the utterances' ``values`` that a regression predicts, in the order of the outputs; by
            default "value", which is their ``value``. Empty in a corpus of classes.

    Raises:
        ValueError: the same section of a file occurs twice, so that it could be in the training and in the test part;
            a label is not among the classes, or has a value beside it; a value is missing or not finite; a part has
            another name, or some utterances have no part or no group and others have one, or have more folds; a
            target has a reserved name.
    """

    name: str
    utterances: list[Utterance]
    classes: list[str]
    passed_over: str = ""
    notes: Sequence[str] = ()
    sentiment_scale: float = 0.0
    test_data: str = ""
    targets: list[str] = field(default_factory=list)

    def __post_init__(self):
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "classes", [printable(name) for name in self.classes])
        if self.classes:
            require(not self.targets, f"corpus {self.name!r} has the targets {self.targets}", "none beside classes")
        else:
            object.__setattr__(self, "targets", list(self.targets) or [VALUE])
            check_targets(self.targets)
        scaled = self.targets == [VALUE]
        scale, allowed = self.sentiment_scale, "0, 1 or 3" if scaled else "0 in a corpus of classes or named targets"
        good = scale in ((0, 1, 3) if scaled else (0,))
        require(good, f"corpus {self.name!r} has the sentiment_scale {scale}", allowed)
        seen: dict[tuple, str] = {}
        for utterance in self.utterances:
            self._check(utterance)
            if utterance.audio is None:
                continue
            key = (identity(utterance.audio), utterance.start, utterance.end)
            found = f"corpus {self.name!r} lists {utterance.name} and {seen.get(key)}, the same audio"
            require(key not in seen, found, "listed once")
            seen[key] = utterance.name
        for column in ("part", "group"):
            without = [utterance.name for utterance in self.utterances if getattr(utterance, column) is None]
            if 0 < len(without) < len(self.utterances):
                count = f"{len(without)} of {len(self.utterances)} utterances without a {column}"
                raise ValueError(f"corpus {self.name!r} has {count}, such as {without[0]}; it must be none or all")
        counts = {len(utterance.folds) for utterance in self.utterances}
        found = f"corpus {self.name!r} has utterances in {' and '.join(map(str, sorted(counts)))} folds"
        require(len(counts) < 2, found, "the same number for all")

    def _check(self, utterance: Utterance) -> None:
        label, value, part = utterance.label, utterance.value, utterance.part
        place = f"corpus {self.name!r}: {utterance.name} has the"
        if self.classes:
            require(value is None, f"{place} value {value}", "None in a corpus of classes")
            require(label in self.classes, f"{place} label {label!r}", f"one of {', '.join(self.classes)}")
        else:
            require(not label, f"{place} label {label!r}", "empty beside a value")
        end = self.sentiment_scale or math.inf
        for name in self.targets:
            value = utterance.target(name)
            finite = value is not None and math.isfinite(value)
            require(finite, f"{place} {name} {value}", "a finite number, for the corpus has no classes")
            require(abs(value) <= end, f"{place} {name} {value}", f"in -{end:g}..{end:g}, the sentiment scale")
        for name in (part, *utterance.folds):
            require(name in (None, "", *PARTS) and part != "", f"{place} part {name!r}", f"one of {', '.join(PARTS)}")

    @property
    def speakers(self) -> list[str]:
        """Return the names of the speakers, sorted."""
        return sorted({utterance.speaker for utterance in self.utterances})

    def summary(self) -> list[str]:
        """Return lines that say what was read: utterances of each class and speaker, and the notes."""
        count, speakers = len(self.utterances), self.speakers
        lines = [f"{self.name}: {count} utterances of {plural(len(speakers), 'speaker')}"]
        if self.classes:
            lines.append(f"{plural(len(self.classes), 'class')}: {_counts([u.label for u in self.utterances])}")
        else:
            lines.append("; ".join(map(self._range, self.targets)) if self.utterances else "no values")
        lines.append(f"{plural(len(speakers), 'speaker')}: {_counts([u.speaker for u in self.utterances])}")
        groups = [utterance.group for utterance in self.utterances if utterance.group is not None]
        if groups:
            lines.append(f"{plural(len(set(groups)), 'group')}: {_counts(groups)}")
        return [*lines, *self.notes, *([self.passed_over] if self.passed_over else [])]

    def _range(self, target: str) -> str:
        values = [utterance.target(target) for utterance in self.utterances]
        return f"{'values' if target == VALUE else target} from {min(values):g} to {max(values):g}"


def plural(count: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> plural(1, "class"), plural(2, "class"), plural(0, "speaker")
        ('1 class', '2 classes', '0 speakers')
    """
    return f"{count} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def _counts(names: list[str]) -> str:
    """Return each name with its number, in order of the names, as far as they fit on a line or two."""
    counts = sorted(Counter(names).items())
    shown = ", ".join(f"{name} {count}" for name, count in counts[:_SHOWN])
    return shown + (f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")

"""Disjoint parts of a corpus for training, validation and test."""

import hashlib
import itertools
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SETS = 100  # sets of speakers of which the best is the validation part


@dataclass
class Split:
    """Indices of the utterances of each part, and a sentence that describes how they were chosen."""

    train: list[int]
    valid: list[int]
    test: list[int]
    protocol: str

    def digest(self) -> str:
        """Return a SHA-256 of the indices of the parts."""
        return hashlib.sha256(json.dumps([self.train, self.valid, self.test]).encode()).hexdigest()


def split(
    speakers: Sequence[str],
    labels: Sequence[float],
    classes: Sequence[str],
    parts: Sequence[str] = (),
    *,
    test_speakers: Sequence[str] = (),
    test_fold: str = "",
    test_fraction: float = 0.2,
    validation: str = "auto",
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Divide utterances into training, validation and test parts; the same arguments give the same parts.

    The test part is the first of these that is given: ``test_speakers``, ``test_fold``, ``parts``, a random
    ``test_fraction``. With a ``test_fraction`` of 0 it is empty, whatever the ``parts``. Random parts keep the
    proportions of the classes.

    Args:
        speakers: speaker of each utterance.
        labels: index into ``classes``, or a value, of each utterance.
        classes: names of the classes; empty for a regression.
        parts: the corpus's own division, "train", "valid" or "test" for each utterance; may be empty.
        test_speakers: speakers whose utterances are the test part.
        test_fold: "k/K" or "k/K/S", the k-th of K random folds, drawn by the seed S instead of ``seed``.
        test_fraction: share of the utterances in a random test part, in 0..1; 0 is no test part.
        validation: "random" utterances, all utterances of some "speakers", or "none". "auto" is "speakers" if no
            speaker of the test part is in the rest, unless the rest has one speaker or would lose a class, and
            "random" otherwise. The corpus's own validation part is used with its own test part, unless this is
            "none"; without a test part it is used too.
        valid_fraction: share of the remaining utterances, or speakers, in the validation part, in 0..1. Of 100 random
            sets of speakers the one is taken whose shares of all classes are closest to it.
        seed: seed of the random parts.

    Returns:
        The :class:`Split`.

    Raises:
        ValueError: a speaker does not occur, there is a single class, or a class is too small for its parts.

    Example:
        >>> split("aabbcc", [0, 1] * 3, ["calm", "angry"], test_speakers=["c"], validation="none")
        Split(train=[0, 1, 2, 3], valid=[], test=[4, 5], protocol='speakers c held out; weights of the last epoch')
    """
    found = sorted({classes[label] for label in labels}) if classes else []
    if classes and len(found) < 2:
        raise ValueError(f"data has utterances of {found}; it must have some of two classes or more")
    strata = labels if classes else [0] * len(labels)
    if test_speakers:
        test, sentence = _speakers_held_out(speakers, test_speakers)
    elif test_fold:
        test, sentence = _fold(strata, classes, test_fold, seed)
    elif not test_fraction:
        test, sentence = [], "trained on all utterances, no test"
    elif parts:
        test, sentence = _own(parts, "test"), "the corpus's own test part"
    else:
        everything = list(range(len(labels)))
        test = _draw(everything, strata, classes, "test_fraction", test_fraction, seed)
        sentence = f"a random {test_fraction:.0%} of the utterances held out, speakers shared"
    rest = sorted(set(range(len(labels))) - set(test))
    if validation == "auto":
        drawn = (test and not (test_speakers or parts)) or test_fold  # a random test part shares speakers by design
        shared = {speakers[i] for i in test} & {speakers[i] for i in rest}
        possible = not (drawn or shared) and _valid_speakers(rest, speakers, strata, valid_fraction, seed)
        validation = "speakers" if possible else "random"
    if "valid" in parts and validation != "none" and not (test_speakers or test_fold):
        valid = _own(parts, "valid")
        sentence += "; best epoch chosen on its validation part"
    else:
        valid = []
        if validation == "speakers":
            valid = _valid_speakers(rest, speakers, strata, valid_fraction, seed)
            if not valid:
                count = len({speakers[i] for i in rest})
                raise ValueError(
                    f"validation is speakers, but of the training's {count} none can be left out without a class; "
                    "it must be random or none"
                )
        elif validation == "random":
            valid = _draw(rest, strata, classes, "valid_fraction", valid_fraction, seed)
        sentence += f"; {how_chosen(validation, valid_fraction)}"
    train = sorted(set(rest) - set(valid))
    if not train:
        raise ValueError("data leaves no training utterance; it must leave some")
    for part, index in (("training", train), ("validation", valid), ("test", test)):
        absent = sorted(set(found) - {classes[labels[i]] for i in index}) if classes and index else []
        if absent and part == "training":
            raise ValueError(f"data leaves no {part} utterance of {absent}; it must leave some of every class")
        if absent:
            sentence += f"; no {part} utterance of {', '.join(absent)}"
    return Split(train, valid, test, sentence)


def how_chosen(validation: str, valid_fraction: float) -> str:
    """Return a phrase that says which epoch's weights are tested."""
    return {
        "random": f"best epoch chosen on a random {valid_fraction:.0%} of the training utterances",
        "speakers": f"best epoch chosen on {valid_fraction:.0%} of the training speakers",
        "auto": f"best epoch chosen on {valid_fraction:.0%} of the training speakers, or utterances if one has all",
        "none": "weights of the last epoch",
    }[validation]


def parse_fold(text: str) -> tuple[int, int, int | None]:
    """Return ``(k, K, S)`` of "k/K/S", or ``(k, K, None)`` of "k/K".

    Raises:
        ValueError: the text has another form, k is not in 1..K or K is below 2.
    """
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})(?:/([0-9]{1,9}))?", text)
    number, count, seed = (None if part is None else int(part) for part in match.groups()) if match else (0, 0, None)
    if not 1 <= number <= count or count < 2:
        raise ValueError(f"test_fold is {text!r}; it must be like 3/10, the third of ten folds")
    return number, count, seed


def _speakers_held_out(speakers: Sequence[str], test_speakers: Sequence[str]) -> tuple[list[int], str]:
    names = sorted(set(test_speakers))
    unknown = sorted(set(names) - set(speakers))
    if unknown:
        raise ValueError(f"test_speakers names {unknown}; they must be among {sorted(set(speakers))}")
    if set(names) == set(speakers):
        raise ValueError(f"test_speakers is {','.join(names)}; it must be fewer than all speakers")
    return [i for i, speaker in enumerate(speakers) if speaker in names], f"speakers {', '.join(names)} held out"


def _fold(strata: Sequence[int], classes: Sequence[str], text: str, seed: int) -> tuple[list[int], str]:
    number, count, own = parse_fold(text)
    seed = seed if own is None else own
    most = max(Counter(strata).values())
    if most < count:
        raise ValueError(
            f"test_fold is {text}, but the largest class has {most} utterances; it must name at most as many folds"
        )
    from sklearn.model_selection import KFold, StratifiedKFold  # takes half a second to import

    folds = StratifiedKFold if classes else KFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # the protocol names absent classes
        pairs = folds(count, shuffle=True, random_state=seed).split(strata, strata)
        test = [int(i) for i in next(itertools.islice(pairs, number - 1, None))[1]]
    return test, f"fold {number} of {count} random folds, speakers shared"


def _own(parts: Sequence[str], name: str) -> list[int]:
    index = [i for i, part in enumerate(parts) if part == name]
    if not index:
        raise ValueError(f"data names parts but none is {name!r}; it must name some, or test_speakers must be given")
    return index


def _valid_speakers(
    rest: Sequence[int], speakers: Sequence[str], strata: Sequence[float], fraction: float, seed: int
) -> list[int]:
    """Return the utterances of whole speakers, about a ``fraction`` of each class.

    Empty if there is one speaker, or if every set that was tried holds all utterances of a class.
    """
    names = sorted({speakers[i] for i in rest})
    if len(names) < 2:
        return []
    size = min(max(1, round(fraction * len(names))), len(names) - 1)
    row = {name: position for position, name in enumerate(names)}
    column = {kind: position for position, kind in enumerate({strata[i] for i in rest})}
    counts = torch.zeros(len(row), len(column))  # utterances of each speaker and class
    for i in rest:
        counts[row[speakers[i]], column[strata[i]]] += 1
    generator = torch.Generator().manual_seed(seed)
    sets = torch.stack([torch.randperm(len(names), generator=generator)[:size] for _ in range(_SETS)])
    shares = counts[sets].sum(1) / counts.sum(0)  # [sets, classes]
    distance = (shares - fraction).abs().mean(1).masked_fill((shares == 1).any(1), math.inf)
    best = int(distance.argmin())
    taken = {names[position] for position in sets[best].tolist()}
    return [i for i in rest if speakers[i] in taken] if distance[best] < math.inf else []


def _draw(
    index: list[int], strata: Sequence[int], classes: Sequence[str], name: str, fraction: float, seed: int
) -> list[int]:
    """Return a random ``fraction`` of the indices with the proportions of the classes."""
    drawn = [strata[i] for i in index]
    counts = Counter(drawn)
    single = sorted(classes[label] for label, count in counts.items() if count < 2 and classes)
    if single:
        raise ValueError(f"data has a single utterance of {single} to draw {name} from; it must have two or more")
    size = math.ceil(fraction * len(index))
    if not len(counts) <= size <= len(index) - len(counts):
        raise ValueError(
            f"{name} is {fraction}, {size} of {len(index)} utterances; it must leave {len(counts)} or more, "
            "one of each class, in either part"
        )
    from sklearn.model_selection import train_test_split

    return train_test_split(index, test_size=fraction, random_state=seed, stratify=drawn)[1]

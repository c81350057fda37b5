"""The parts of a corpus for training, validation and test, none of which shares an utterance with another."""

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split


@dataclass
class Split:
    """Indices of the utterances of each part, and the sentence that says how they were chosen."""

    train: list[int]
    valid: list[int]
    test: list[int]
    protocol: str


def split(
    speakers: Sequence[str],
    labels: Sequence[float],
    classes: Sequence[str],
    parts: Sequence[str] = (),
    *,
    test_speakers: Sequence[str] = (),
    test_fold: str = "",
    test_fraction: float = 0.2,
    validation: str = "random",
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """The utterances of the test, and of what is left those of the validation.

    The test is the first of these that is asked for or there: ``test_speakers``; fold ``k`` of ``K`` random ones,
    which ``test_fold`` names; the corpus's own ``parts``, its validation included unless that is "none"; a random
    ``test_fraction``. Random draws keep the classes in proportion. The validation is a random ``valid_fraction`` of
    the other utterances, those of about that fraction of the other speakers ("speakers"), or nothing ("none").

    Raises:
        ValueError: a speaker that does not occur, a single class, or a class too small for its parts.
    """
    found = sorted({classes[label] for label in labels}) if classes else []
    if classes and len(found) < 2:
        raise ValueError(f"data has utterances of {found}; it must have some of two classes or more")
    strata = labels if classes else [0] * len(labels)
    if test_speakers:
        test, sentence = _speakers_held_out(speakers, test_speakers)
    elif test_fold:
        test, sentence = _fold(strata, classes, test_fold, seed)
    elif parts:
        test, sentence = _own(parts, "test"), "the corpus's own test part"
    else:
        everything = list(range(len(labels)))
        test = _draw(everything, strata, classes, "test_fraction", test_fraction, seed)
        sentence = f"a random {test_fraction:.0%} of the utterances held out, speakers shared"
    rest = sorted(set(range(len(labels))) - set(test))
    if "valid" in parts and validation != "none" and not (test_speakers or test_fold):
        valid = _own(parts, "valid")
        sentence += "; best epoch chosen on its validation part"
    else:
        valid = []
        if validation == "speakers":
            valid = _valid_speakers(rest, speakers, valid_fraction, seed)
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
    """Which epoch's weights are tested, in words."""
    return {
        "random": f"best epoch chosen on a random {valid_fraction:.0%} of the training utterances",
        "speakers": f"best epoch chosen on a random {valid_fraction:.0%} of the training speakers",
        "none": "weights of the last epoch",
    }[validation]


def parse_fold(text: str) -> tuple[int, int, int | None]:
    """``(k, K, S)`` of "k/K/S" or, without S, of "k/K"; 1 ≤ k ≤ K and K at least 2.

    Raises:
        ValueError: anything else.
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
    folds = StratifiedKFold if classes else KFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # the protocol's sentence tells who is absent
        pairs = folds(count, shuffle=True, random_state=seed).split(strata, strata)
        test = [int(i) for i in next(itertools.islice(pairs, number - 1, None))[1]]
    return test, f"fold {number} of {count} random folds, speakers shared"


def _own(parts: Sequence[str], name: str) -> list[int]:
    index = [i for i, part in enumerate(parts) if part == name]
    if not index:
        raise ValueError(f"data names parts but none is {name!r}; it must name some, or test_speakers must be given")
    return index


def _valid_speakers(rest: Sequence[int], speakers: Sequence[str], fraction: float, seed: int) -> list[int]:
    there = sorted({speakers[i] for i in rest})
    count = max(1, round(fraction * len(there)))
    if count >= len(there):
        raise ValueError(
            f"validation is speakers, but data leaves the training {len(there)} of them; it must leave two or more"
        )
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed)).tolist()
    names = {there[position] for position in order[:count]}
    return [i for i in rest if speakers[i] in names]


def _draw(
    index: list[int], strata: Sequence[int], classes: Sequence[str], name: str, fraction: float, seed: int
) -> list[int]:
    """A random ``fraction`` of the indices, every class in proportion."""
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
    return train_test_split(index, test_size=fraction, random_state=seed, stratify=drawn)[1]

"""Disjoint parts of a corpus for training, validation and test."""

import hashlib
import itertools
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch

from ser_fast.data.utterance import UNKNOWN

_SETS = 100  # sets of speakers of which the best is the validation part
_SHOWN = 5


@dataclass
class Split:
    """Indices of the utterances of each part, and a sentence that describes how they were chosen.

    Attributes:
        missing: speakers who have all utterances of a class, for each class that the training part lacks.
        chosen: phrase that says which epoch's weights are tested.
    """

    train: list[int]
    valid: list[int]
    test: list[int]
    protocol: str
    missing: dict[str, list[str]] = field(default_factory=dict, repr=False)
    chosen: str = field(default="", repr=False)

    def digest(self) -> str:
        """Return a SHA-256 of the indices of the parts."""
        return hashlib.sha256(json.dumps([self.train, self.valid, self.test]).encode()).hexdigest()


def split(
    speakers: Sequence[str],
    labels: Sequence,
    classes: Sequence[str],
    parts: Sequence[str] = (),
    groups: Sequence[str] = (),
    folds: Sequence[Sequence[str]] = (),
    *,
    test_speakers: Sequence[str] = (),
    test_groups: Sequence[str] = (),
    test_fold: str = "",
    test_fraction: float = 0.2,
    validation: str = "auto",
    valid_fraction: float = 0.1,
    seed: int = 0,
    allow_missing_classes: bool = False,
    origin: str = "",
) -> Split:
    """Divide utterances into training, validation and test parts; the same arguments give the same parts.

    The test part is the first of these that is given: ``test_speakers``, ``test_groups``, ``test_fold``, ``parts``,
    the only one of ``folds``, a random ``test_fraction``. With a ``test_fraction`` of 0 it is empty, whatever the
    ``parts`` and ``folds``. Random parts keep the proportions of the classes.

    Args:
        speakers: speaker of each utterance.
        labels: index into ``classes``, or a row of values, of each utterance.
        classes: names of the classes; empty for a regression.
        parts: the corpus's own division, "train", "valid" or "test" for each utterance; may be empty.
        groups: group of each utterance, such as the recording session; may be empty.
        folds: part of each utterance in each of the corpus's own folds, ``""`` if a fold lacks it; may be empty.
        test_speakers: speakers whose utterances are the test part.
        test_groups: groups whose utterances are the test part.
        test_fold: "k/K" or "k/K/S", the k-th of K random folds, drawn by the seed S instead of ``seed``; "k", the
            k-th of ``folds``.
        test_fraction: share of the utterances in a random test part, in 0..1; 0 is no test part.
        validation: "random" utterances, all utterances of some "speakers" or "groups", or "none". "auto" is
            "speakers" if no speaker of the test part is in the rest, unless the rest has one speaker or would lose a
            class, and "random" otherwise. The corpus's own validation part is used with its own test part, unless
            this is "none"; without a test part it is used too.
        valid_fraction: share of the remaining utterances, speakers or groups in the validation part, in 0..1. Of 100
            random sets of speakers the one is taken whose shares of all classes are closest to it.
        seed: seed of the random parts.
        allow_missing_classes: accept a training part that lacks a class, which is then never trained.
        origin: sentence on ``parts`` that replaces "the corpus's own test part".

    Returns:
        The :class:`Split`.

    Raises:
        ValueError: a speaker, group or fold does not occur, there is a single class, the training part lacks a class,
            or a class is too small for its parts.

    Example:
        >>> split("aabbcc", [0, 1] * 3, ["calm", "angry"], test_speakers=["c"], validation="none")
        Split(train=[0, 1, 2, 3], valid=[], test=[4, 5], protocol='speakers c held out; weights of the last epoch')
    """
    found = sorted({classes[label] for label in labels}) if classes else []
    if classes and len(found) < 2:
        raise ValueError(f"data has utterances of {found}; it must have some of two classes or more")
    strata = labels if classes else [0] * len(labels)
    if test_speakers:
        parts, (test, sentence) = (), _held_out(speakers, test_speakers, "speaker")
    elif test_groups:
        parts, (test, sentence) = (), _held_out(groups, test_groups, "group")
        sentence += f", {_sharing(speakers, test)}"
    elif "/" in test_fold:
        parts, (test, sentence) = (), _random_fold(strata, classes, test_fold, seed)
    elif not (test_fold or test_fraction):
        test, sentence = [], "trained on all utterances, no test"
    elif test_fold or (len(folds) and not parts):
        parts, sentence = _own_fold(folds, test_fold, speakers)
        test = _own(parts, "test")
    elif parts:
        test = _own(parts, "test")
        sentence = origin or f"the corpus's own test part, {_sharing(speakers, test)}"
    else:
        everything = list(range(len(labels)))
        test = _draw(everything, strata, classes, "test_fraction", test_fraction, seed)
        sentence = f"a random {test_fraction:.0%} of the utterances held out, speakers shared"
    outside = {i for i, part in enumerate(parts) if not part}
    rest = sorted(set(range(len(labels))) - set(test) - outside)
    if validation == "auto":
        # A random test part shares speakers by design.
        drawn = bool(test) and not (test_speakers or test_groups or parts)
        shared = {speakers[i] for i in test} & {speakers[i] for i in rest}
        possible = not (drawn or shared) and _whole(rest, speakers, strata, valid_fraction, seed)
        validation = "speakers" if possible else "random"
    if "valid" in parts and validation != "none":
        valid, chosen = _own(parts, "valid"), "best epoch chosen on its validation part"
    else:
        of = {"speakers": speakers, "groups": groups}.get(validation, ())
        valid = _validation(rest, of, strata, classes, validation, valid_fraction, seed)
        chosen = how_chosen(validation, valid_fraction)
    sentence += f"; {chosen}"
    train = sorted(set(rest) - set(valid))
    if not train:
        raise ValueError("data leaves no training utterance; it must leave some")
    missing = {}
    for part, index in (("training", train), ("validation", valid), ("test", test)):
        absent = sorted(set(found) - {classes[labels[i]] for i in index}) if classes and index else []
        if absent and part == "training":
            named = [classes[label] for label in labels]
            missing = {name: sorted({speakers[i] for i, one in enumerate(named) if one == name}) for name in absent}
            _refuse_missing(missing, allow_missing_classes, len(found))
        if absent:
            held = f" ({held_by(missing)})" if part == "training" else ""
            sentence += f"; no {part} utterance of {', '.join(absent)}{held}"
    return Split(train, valid, test, sentence, missing, chosen)


def held_by(missing: Mapping[str, Sequence[str]]) -> str:
    """Return a phrase that names the speakers who have all utterances of a class.

    Args:
        missing: :attr:`Split.missing`.

    Example:
        >>> held_by({"disgust": ["07"], "fear": ["07", "09"]})
        'speaker 07 has all utterances of disgust, speakers 07, 09 have all utterances of fear'
    """
    phrases = []
    for name, holders in missing.items():
        shown = ", ".join(holders[:_SHOWN]) + (f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else "")
        who = f"speakers {shown} have" if len(holders) > 1 else f"speaker {shown} has"
        phrases.append(f"{who} all utterances of {name}")
    return ", ".join(phrases)


def _refuse_missing(missing: dict[str, list[str]], allowed: bool, count: int) -> None:
    """Raise ``ValueError`` for classes without training utterance, of so many that the corpus has."""
    if missing and not allowed:
        raise ValueError(
            f"data leaves no training utterance of {list(missing)}; it must leave some of every class, but "
            f"{held_by(missing)}; allow_missing_classes=true trains without"
        )
    if missing and count - len(missing) < 2:
        raise ValueError(
            f"data leaves no training utterance of {list(missing)}; it must leave some of two classes or more"
        )


def how_chosen(validation: str, valid_fraction: float) -> str:
    """Return a phrase that says which epoch's weights are tested."""
    return {
        "random": f"best epoch chosen on a random {valid_fraction:.0%} of the training utterances",
        "speakers": f"best epoch chosen on {valid_fraction:.0%} of the training speakers",
        "groups": f"best epoch chosen on {valid_fraction:.0%} of the training groups",
        "auto": f"best epoch chosen on {valid_fraction:.0%} of the training speakers, or utterances if one has all",
        "none": "weights of the last epoch",
    }[validation]


def parse_fold(text: str) -> tuple[int, int, int | None]:
    """Return ``(k, K, S)`` of "k/K/S", ``(k, K, None)`` of "k/K", or ``(k, 0, None)`` of "k", a fold of the corpus.

    Raises:
        ValueError: the text has another form, k is not in 1..K or K is below 2.
    """
    if re.fullmatch(r"[1-9][0-9]{0,3}", text):
        return int(text), 0, None
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})(?:/([0-9]{1,9}))?", text)
    number, count, seed = (None if part is None else int(part) for part in match.groups()) if match else (0, 0, None)
    if not 1 <= number <= count or count < 2:
        form = "like 3/10, the third of ten folds, or 3, the third of the corpus's own"
        raise ValueError(f"test_fold is {text!r}; it must be {form}")
    return number, count, seed


def _held_out(of: Sequence[str], given: Sequence[str], name: str) -> tuple[list[int], str]:
    """Return the utterances of the given speakers or groups; ``of`` names that of each utterance."""
    names = sorted(set(given))
    if not of:
        raise ValueError(f"test_{name}s is {','.join(names)}, but data has no column {name!r}; omit it")
    unknown = sorted(set(names) - set(of))
    if unknown:
        raise ValueError(f"test_{name}s names {unknown}; they must be among {sorted(set(of))}")
    if set(names) == set(of):
        raise ValueError(f"test_{name}s is {','.join(names)}; it must be fewer than all {name}s")
    return [i for i, one in enumerate(of) if one in names], f"{name}s {', '.join(names)} held out"


def _own_fold(folds: Sequence[Sequence[str]], text: str, speakers: Sequence[str]) -> tuple[list[str], str]:
    """Return the part of each utterance in a fold of the corpus's own, by default the only one."""
    count, number = len(folds[0]) if len(folds) else 0, parse_fold(text or "1")[0]
    if not count:
        raise ValueError(f"test_fold is {text}, but data has no folds of its own; it must be like 3/10")
    if not text and count > 1:
        raise ValueError(f"data has {count} folds of its own; test_fold must name one, 1 to {count}, or be like 3/10")
    if number > count:
        raise ValueError(f"test_fold is {text}; it must be in 1..{count}, the corpus's own folds, or like 3/10")
    parts = [parts[number - 1] for parts in folds]
    test, rest = (
        {name for name, part in zip(speakers, parts) if (part == "test") == of and part} for of in (True, False)
    )
    return parts, f"fold {number} of the corpus's own {count}, {sharing(test, rest)}"


def sharing(test: Set[str], rest: Set[str]) -> str:
    """Return a phrase that says whether the speakers of a test part are in the other parts too.

    Example:
        >>> sharing({"03", "08"}, {"08", "09"}), sharing({"03"}, {"08"}), sharing({"unknown"}, {"unknown"})
        ('speakers shared (1 of 2)', 'no speakers shared', 'speakers unknown')
    """
    if UNKNOWN in test | rest:
        return "speakers unknown"
    return f"speakers shared ({len(test & rest)} of {len(test)})" if test & rest else "no speakers shared"


def _sharing(speakers: Sequence[str], test: Sequence[int]) -> str:
    """Return :func:`sharing` of the utterances of a test part and all others."""
    rest = set(range(len(speakers))) - set(test)
    return sharing({speakers[i] for i in test}, {speakers[i] for i in rest})


def _random_fold(strata: Sequence[int], classes: Sequence[str], text: str, seed: int) -> tuple[list[int], str]:
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


def _validation(
    rest: list[int],
    of: Sequence[str],
    strata: Sequence[float],
    classes: Sequence[str],
    validation: str,
    fraction: float,
    seed: int,
) -> list[int]:
    """Return the validation part of the utterances that are not tested; ``of`` names the speakers or groups."""
    if validation == "random":
        return _draw(rest, strata, classes, "valid_fraction", fraction, seed)
    if validation == "none":
        return []
    if not of:
        raise ValueError(f"validation is {validation}, but data has no column 'group'; it must be another one")
    valid = _whole(rest, of, strata, fraction, seed)
    if not valid:
        count = len({of[i] for i in rest})
        raise ValueError(
            f"validation is {validation}, but of the training's {count} none can be left out without a class; "
            "it must be random or none"
        )
    return valid


def _whole(
    rest: Sequence[int], speakers: Sequence[str], strata: Sequence[float], fraction: float, seed: int
) -> list[int]:
    """Return the utterances of whole speakers, or groups, about a ``fraction`` of each class.

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

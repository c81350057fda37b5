"""A corpus in memory and its parts for training, validation and test."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.model_selection import train_test_split
from torch import Tensor

from ser_fast import distributed
from ser_fast.audio import read_corpus
from ser_fast.batches import LengthSortedBatches
from ser_fast.corpora import Corpus, load_corpus


@dataclass
class Dataset:
    """The utterances that could be read; ``labels`` index ``classes``, ``skipped`` says what could not and why."""

    name: str
    waves: list[Tensor]
    labels: list[int]
    speakers: list[str]
    names: list[str]
    classes: list[str]
    skipped: list[str]

    def batches(self, index: Sequence[int], batch_size: int) -> LengthSortedBatches:
        """Batches of these utterances; of several processes, each gets a share, alike in number and length."""
        share = slice(distributed.rank(), None, distributed.world())
        return LengthSortedBatches([self.waves[i] for i in index], [self.labels[i] for i in index], batch_size, share)

    def digest(self) -> str:
        """Tells whether it is the same corpus: names, speakers, labels and lengths in order, and the classes."""
        rows = [*zip(self.names, self.speakers, self.labels, map(len, self.waves))]
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()


def load_dataset(corpus: Corpus | str, sample_rate: int, skip_bad: bool = False) -> Dataset:
    """Read a corpus, or the one that a ``--data`` names; see :func:`ser_fast.corpora.load_corpus`."""
    corpus = load_corpus(corpus) if isinstance(corpus, str) else corpus
    utterances, waves, errors = read_corpus(corpus.utterances, sample_rate, skip_bad)
    labels, speakers = labels_and_speakers(Corpus(corpus.name, utterances, corpus.classes))
    names = [utterance.name for utterance in utterances]
    return Dataset(corpus.name, waves, labels, speakers, names, corpus.classes, [str(error) for error in errors])


def labels_and_speakers(corpus: Corpus) -> tuple[list[int], list[str]]:
    """A class index and a speaker for every utterance."""
    labels = [corpus.classes.index(utterance.label) for utterance in corpus.utterances]
    return labels, [utterance.speaker for utterance in corpus.utterances]


@dataclass
class Split:
    """Indices of the utterances of each part, and the sentence that says how they were chosen."""

    train: list[int]
    valid: list[int]
    test: list[int]
    protocol: str


def split(
    speakers: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    test_speakers: Sequence[str] = (),
    test_fraction: float = 0.2,
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Hold out speakers, or a stratified draw of utterances; then draw the validation part from the rest.

    Raises:
        ValueError: a speaker that does not occur, a single class, or a class too small for its parts.
    """
    found = sorted({classes[label] for label in labels})
    if len(found) < 2:
        raise ValueError(f"data has utterances of {found}; it must have some of two classes or more")
    everything = list(range(len(labels)))
    if test_speakers:
        names = sorted(set(test_speakers))
        unknown = sorted(set(names) - set(speakers))
        if unknown:
            raise ValueError(f"test_speakers names {unknown}; they must be among {sorted(set(speakers))}")
        test = [index for index in everything if speakers[index] in names]
        rest = [index for index in everything if speakers[index] not in names]
        if not rest:
            raise ValueError(f"test_speakers is {','.join(names)}; it must be fewer than all speakers")
        held_out = f"speakers {', '.join(names)} held out"
    else:
        rest, test = _draw(everything, labels, classes, "test_fraction", test_fraction, seed)
        held_out = f"a random {test_fraction:.0%} of the utterances held out, speakers shared"
    train, valid = _draw(rest, labels, classes, "valid_fraction", valid_fraction, seed)
    protocol = f"{held_out}; best epoch chosen on a random {valid_fraction:.0%} of the training utterances"
    for part, index in (("training", train), ("validation", valid), ("test", test)):
        absent = sorted(set(found) - {classes[labels[i]] for i in index})
        if absent and part == "training":
            raise ValueError(f"data leaves no {part} utterance of {absent}; it must leave some of every class")
        if absent:
            protocol += f"; no {part} utterance of {', '.join(absent)}"
    return Split(train, valid, test, protocol)


def _draw(
    index: list[int], labels: Sequence[int], classes: Sequence[str], name: str, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """The indices in two parts, of which the second has ``fraction``, every class in proportion."""
    strata = [labels[i] for i in index]
    counts = Counter(strata)
    single = sorted(classes[label] for label, count in counts.items() if count < 2)
    if single:
        raise ValueError(f"data has a single utterance of {single} to draw {name} from; it must have two or more")
    size = math.ceil(fraction * len(index))
    if not len(counts) <= size <= len(index) - len(counts):
        raise ValueError(
            f"{name} is {fraction}, {size} of {len(index)} utterances; it must leave {len(counts)} or more, "
            "one of each class, in either part"
        )
    return train_test_split(index, test_size=fraction, random_state=seed, stratify=strata)

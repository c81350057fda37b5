"""A corpus: waveforms, labels and speakers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ser_fast.data.batches import LengthSortedBatches
from ser_fast.data.corpora import Corpus, load_corpus
from ser_fast.data.features import FeatureCache
from ser_fast.data.splits import Split, split
from ser_fast.data.storage import Storage, open_waves
from ser_fast.data.utterance import VALUE
from ser_fast.data.waves import Selected
from ser_fast.data.waves import lengths as lengths_of


@dataclass
class Dataset:
    """The utterances of a corpus that could be read.

    Args:
        name: name of the corpus.
        waves: float32 ``[n]`` each, at one sampling rate; a list, or :class:`ser_fast.data.waves.Waves`.
        labels: an index into ``classes`` each; without classes a row of values each, one for each target. A number
            alone becomes a row of one.
        speakers: a name each.
        names: names of the utterances.
        classes: names of the classes; empty for a regression.
        skipped: an error message for each utterance that could not be read.
        parts: the corpus's own division, "train", "valid" or "test" each; empty if it has none.
        passed_over: sentence about files in the corpus's folder that were not taken, or ``""``.
        sentiment_scale: 1 or 3 as in :class:`ser_fast.data.corpora.Corpus`, 0 if the labels are no sentiment.
        groups: name of the group of each utterance; empty if the corpus has none.
        folds: parts of each utterance in the corpus's own folds; empty if it has none.
        test_data: name of the corpus that the test part is from, if it is another one; ``""`` if not.
        targets: names of the values, as in :class:`ser_fast.data.corpora.Corpus`; empty with classes.
        frames: features ``[T, D]`` of each utterance, which models take in place of the wave; None if there are none.
        upstream: what computed them, in types that JSON has; "digest" identifies them.

    Attributes:
        numbers: number of each utterance in the dataset that this one is a part of; 0, 1, ... in a whole dataset.
        features: cache of features by these numbers, which a dataset shares with its parts.
    """

    name: str
    waves: Sequence[Tensor]
    labels: list[int] | list[tuple[float, ...]]
    speakers: list[str]
    names: list[str]
    classes: list[str]
    skipped: list[str]
    parts: list[str] = field(default_factory=list)
    passed_over: str = ""
    sentiment_scale: float = 0.0
    groups: list[str] = field(default_factory=list)
    folds: list[tuple[str, ...]] = field(default_factory=list)
    test_data: str = ""
    targets: list[str] = field(default_factory=list)
    frames: Sequence[Tensor] | None = None
    upstream: dict = field(default_factory=dict)
    numbers: list[int] = field(init=False, repr=False)
    features: FeatureCache = field(init=False, repr=False, compare=False, default_factory=FeatureCache)

    def __post_init__(self):
        self.numbers = list(range(len(self.waves)))
        self.targets = [] if self.classes else list(self.targets) or [VALUE]
        if not self.classes:
            self.labels = [tuple(row) if isinstance(row, Sequence) else (row,) for row in self.labels]

    @property
    def lengths(self) -> Sequence[int]:
        """Return the number of samples of each utterance; no audio is read."""
        return lengths_of(self.waves)

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Return what models take of each utterance: its features if there are some, else its wave."""
        return self.waves if self.frames is None else self.frames

    def batches(
        self, index: Sequence[int], batch_size: int, share: slice = slice(None), **drawing
    ) -> LengthSortedBatches:
        """Return batches of these utterances; the other arguments are :class:`LengthSortedBatches`'s."""
        labels = [self.labels[i] for i in index]
        return LengthSortedBatches(Selected(self.inputs, index), labels, batch_size, share, **drawing)

    def part(self, index: Sequence[int]) -> "Dataset":
        """Return the dataset of these utterances, without the corpus's own division, which does not divide them."""
        lists = {name: [getattr(self, name)[i] for i in index] for name in ("labels", "speakers", "names")}
        groups = [self.groups[i] for i in index] if self.groups else []
        divided = {"groups": groups, "parts": [], "folds": [], "test_data": ""}
        frames = None if self.frames is None else Selected(self.frames, index)
        found = replace(self, waves=Selected(self.waves, index), frames=frames, **lists, **divided)
        found.numbers, found.features = [self.numbers[i] for i in index], self.features
        return found

    def split(self, **held_out) -> Split:
        """Return the :func:`ser_fast.data.splits.split` of these utterances."""
        divisions = _divisions(self.name, self.test_data, self.parts, self.groups, self.folds)
        return split(self.speakers, self.labels, self.classes, **divisions, **held_out)

    def digest(self) -> str:
        """Return a SHA-256 of names, speakers, labels and lengths in order, classes, targets and features."""
        single = self.targets == [VALUE]  # hashed as a number, without its name, as before there were others
        labels = [row[0] for row in self.labels] if single else self.labels
        rows = [*zip(self.names, self.speakers, labels, self.lengths)]
        named = [] if self.classes or single else [self.targets]
        named += [self.upstream["digest"]] if self.upstream else []
        return hashlib.sha256(json.dumps([self.classes, rows, *named]).encode()).hexdigest()


def load_dataset(
    corpus: Corpus | str,
    sample_rate: int,
    skip_bad: bool = False,
    report: Callable[[str], None] = lambda line: None,
    storage: Storage = Storage(),  # noqa: B008 (frozen)
) -> Dataset:
    """Open a corpus: in memory, in a cache on disk, or as the files that it is.

    Args:
        corpus: the corpus, or its name as in :func:`ser_fast.data.corpora.load_corpus`.
        sample_rate: sampling rate of the waves, in hertz.
        skip_bad: leave out utterances that cannot be read instead of raising an error.
        report: called with a line that says what the corpus takes, and now and then while a large one is read.
        storage: where the waves are kept; in memory if they fit well, by default.

    Raises:
        AudioError: an utterance cannot be read and ``skip_bad`` is false.
        ValueError: the corpus does not fit where ``storage`` says.
    """
    corpus = load_corpus(corpus) if isinstance(corpus, str) else corpus
    return read_dataset(corpus, sample_rate, skip_bad, report, storage)[1]


def read_dataset(
    corpus: Corpus, sample_rate: int, skip_bad: bool, report: Callable[[str], None], storage: Storage
) -> tuple[Corpus, Dataset]:
    """Return the utterances that could be read, as a corpus and as a dataset; see :func:`load_dataset`."""
    utterances, waves, errors = open_waves(corpus.utterances, sample_rate, skip_bad, storage, report)
    kept = replace(corpus, utterances=utterances)
    dataset = Dataset(
        kept.name,
        waves,
        labels(kept),
        speakers(kept),
        [utterance.name for utterance in utterances],
        kept.classes,
        [str(error) for error in errors],
        parts(kept),
        kept.passed_over,
        kept.sentiment_scale,
        groups(kept),
        folds(kept),
        kept.test_data,
        kept.targets,
    )
    return kept, dataset


def labels(corpus: Corpus) -> list[int] | list[tuple[float, ...]]:
    """Return the class index of every utterance, or the row of its values in a corpus without classes."""
    if corpus.classes:
        return [corpus.classes.index(utterance.label) for utterance in corpus.utterances]
    return [tuple(map(utterance.target, corpus.targets)) for utterance in corpus.utterances]


def speakers(corpus: Corpus) -> list[str]:
    """Return the speaker of every utterance."""
    return [utterance.speaker for utterance in corpus.utterances]


def parts(corpus: Corpus) -> list[str]:
    """Return the part of every utterance in the corpus's own division, or an empty list without one."""
    found = [utterance.part for utterance in corpus.utterances]
    return found if all(found) else []


def own_folds(corpus: Corpus) -> int | None:
    """Return the number of the corpus's own folds; 0 for a single division of its own, None without any."""
    found = folds(corpus)
    return len(found[0]) if found else 0 if parts(corpus) else None


def groups(corpus: Corpus) -> list[str]:
    """Return the group of every utterance, or an empty list without groups."""
    found = [utterance.group for utterance in corpus.utterances]
    return [] if None in found else found


def folds(corpus: Corpus) -> list[tuple[str, ...]]:
    """Return the parts of every utterance in the corpus's own folds, or an empty list without folds."""
    found = [utterance.folds for utterance in corpus.utterances]
    return found if all(found) else []


def split_corpus(corpus: Corpus, **held_out) -> Split:
    """Return the :func:`ser_fast.data.splits.split` of a corpus; no audio is read."""
    divisions = _divisions(corpus.name, corpus.test_data, parts(corpus), groups(corpus), folds(corpus))
    return split(speakers(corpus), labels(corpus), corpus.classes, **divisions, **held_out)


def _divisions(
    name: str, test_data: str, parts: list[str], groups: list[str], folds: list[tuple[str, ...]]
) -> dict[str, list | str]:
    """Return the arguments of ``split`` that say how the corpus itself is divided."""
    origin = test_data and f"trained on {name}, tested on {test_data}"
    return {"parts": parts, "groups": groups, "folds": folds, "origin": origin}

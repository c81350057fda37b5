"""Counts of a corpus as it was read: classes, speakers, durations, sample rates, and what was found on the way."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ser_fast.data import findings
from ser_fast.data.findings import Finding
from ser_fast.data.survey import Properties
from ser_fast.data.utterance import Corpus, Utterance
from ser_fast.data.wav import AudioError


@dataclass(frozen=True)
class Share:
    """A class, a speaker, or the whole of a corpus.

    Args:
        name: its name.
        utterances: number of its utterances.
        others: number of the speakers of a class, or of the classes of a speaker.
        durations: seconds of each utterance that can be read.
    """

    name: str
    utterances: int
    others: int
    durations: list[float]

    @property
    def seconds(self) -> float:
        """Return the sum of the durations."""
        return sum(self.durations)

    def spread(self) -> tuple[float, float, float] | None:
        """Return the shortest, median and longest duration; None if no utterance can be read."""
        known = self.durations
        return (min(known), statistics.median(known), max(known)) if known else None


@dataclass(frozen=True)
class Summary:
    """A corpus as it was read.

    Args:
        name: name of the corpus.
        whole: all of it.
        classes: each class, in the corpus's order; empty for a regression.
        speakers: each speaker, in alphabetical order.
        counts: utterances of each pair of speaker and class that occurs.
        targets: smallest, mean and largest value of each target of a regression, by its name.
        formats: number of utterances of each sample rate and number of channels.
        parts, groups: number of utterances of each, by name; empty without any.
        folds: number of the corpus's own folds.
        notes: sentences about how the corpus was read.
        passed_over: sentence about files that were not taken, or ``""``.
        findings: what its user should know.
    """

    name: str
    whole: Share
    classes: list[Share]
    speakers: list[Share]
    counts: Counter[tuple[str, str]]
    targets: dict[str, tuple[float, float, float]]
    formats: dict[tuple[int, int], int]
    parts: dict[str, int]
    groups: dict[str, int]
    folds: int
    notes: tuple[str, ...]
    passed_over: str
    findings: list[Finding]

    def as_dict(self) -> dict:
        """Return the content as JSON can hold it."""
        of_class: dict[str, dict[str, int]] = defaultdict(dict)
        for (speaker, label), count in sorted(self.counts.items()):
            of_class[speaker][label] = count
        return {
            "corpus": self.name,
            "utterances": self.whole.utterances,
            "readable": len(self.whole.durations),
            **_times(self.whole),
            "classes": {one.name: _entry(one, "speakers") for one in self.classes},
            "speakers": {
                one.name: _entry(one, "classes") | {"of_class": of_class[one.name]} for one in self.speakers
            },
            "targets": {name: dict(zip(("min", "mean", "max"), found)) for name, found in self.targets.items()},
            "formats": [
                {"sample_rate": rate, "channels": channels, "utterances": count}
                for (rate, channels), count in self.formats.items()
            ],
            "parts": self.parts,
            "groups": self.groups,
            "folds": self.folds,
            "notes": list(self.notes),
            "passed_over": self.passed_over,
            "warnings": [
                {"code": one.code, "sentence": one.sentence, "names": list(one.names)} for one in self.findings
            ],
        }


def summarise(corpus: Corpus, properties: Sequence[Properties | AudioError]) -> Summary:
    """Return the summary of a corpus.

    Args:
        corpus: the corpus.
        properties: what :func:`ser_fast.data.survey.survey` returns for its utterances.
    """
    seconds = [one.seconds if isinstance(one, Properties) else None for one in properties]
    pairs = Counter((one.speaker, one.label) for one in corpus.utterances if corpus.classes)
    formats = Counter((one.sample_rate, one.channels) for one in properties if isinstance(one, Properties))
    classes = _shares(corpus.utterances, seconds, "label", "speaker")
    speakers = _shares(corpus.utterances, seconds, "speaker", "label")
    return Summary(
        corpus.name,
        Share("all", len(seconds), len(speakers), [one for one in seconds if one is not None]),
        [classes[name] for name in corpus.classes if name in classes],
        [speakers[name] for name in corpus.speakers],
        pairs,
        {name: _range([one.target(name) for one in corpus.utterances]) for name in corpus.targets},
        dict(formats.most_common()),
        dict(sorted(Counter(one.part for one in corpus.utterances if one.part).items())),
        dict(sorted(Counter(one.group for one in corpus.utterances if one.group is not None).items())),
        max((len(one.folds) for one in corpus.utterances), default=0),
        tuple(corpus.notes),
        corpus.passed_over,
        findings.of_names(corpus) + findings.of_audio(corpus, properties),
    )


def _shares(
    utterances: Sequence[Utterance], seconds: Sequence[float | None], column: str, other: str
) -> dict[str, Share]:
    """Return the share of each name in a column, and count the names of another column in it."""
    found = defaultdict(list)
    for utterance, duration in zip(utterances, seconds, strict=True):
        found[getattr(utterance, column)].append((getattr(utterance, other), duration))
    return {
        name: Share(name, len(rows), len({other for other, _ in rows}), [one for _, one in rows if one is not None])
        for name, rows in found.items()
    }


def _range(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.fmean(values), max(values)


def _entry(share: Share, others: str) -> dict:
    return {"utterances": share.utterances, others: share.others, **_times(share)}


def _times(share: Share) -> dict:
    spread = share.spread() or (None, None, None)
    times = dict(zip(("shortest", "median", "longest"), spread))
    return {"seconds": share.seconds, **times}

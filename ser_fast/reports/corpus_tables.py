"""Tables of a corpus on a page: utterances by class and speaker, values, and durations."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from ser_fast.data.dataset import Dataset
from ser_fast.reports import html

SPEAKERS = 60  # rows of a table; a corpus may have thousands
CLASSES = 20  # columns of a table


def section(dataset: Dataset, sample_rate: int, skipped: Sequence[str] = ()) -> list[str]:
    """Return HTML parts: classes by speakers or values, durations, and the files that could not be read.

    Args:
        dataset: the utterances.
        sample_rate: that of their waves, in hertz.
        skipped: an error message for each utterance that is missing.
    """
    seconds = [length / sample_rate for length in dataset.lengths]
    parts = [html.heading("Corpus"), html.table(*_speakers(dataset, seconds))]
    if (count := len(_used(dataset))) > CLASSES:
        parts.append(
            html.note(f"The speakers' utterances are not counted by class: {count} classes, over {CLASSES}.")
        )
    if not dataset.classes:
        parts.append(html.table(*_values(dataset)))
    parts.append(html.table(*_durations(dataset, seconds)))
    if skipped:
        parts += [html.heading("Unreadable"), html.preformatted("\n".join(map(html.printable, skipped[:SPEAKERS])))]
        if len(skipped) > SPEAKERS:
            parts.append(html.note(f"{len(skipped) - SPEAKERS} more are in unreadable.txt."))
    return parts


def _used(dataset: Dataset) -> list[tuple[int, str]]:
    """Return number and name of each class that has utterances."""
    labels = set(dataset.labels) if dataset.classes else ()
    return [(number, name) for number, name in enumerate(dataset.classes) if number in labels]


def _speakers(dataset: Dataset, seconds: list[float]) -> tuple[list[str], list[list]]:
    """Return header and rows: the utterances of each speaker, by up to :data:`CLASSES` classes, and their minutes."""
    counts = Counter(zip(dataset.speakers, dataset.labels if dataset.classes else [None] * len(seconds)))
    sizes, minutes = Counter(dataset.speakers), Counter()
    for speaker, length in zip(dataset.speakers, seconds):
        minutes[speaker] += length / 60
    used = _used(dataset)
    used = used if len(used) <= CLASSES else []
    shown = sorted(speaker for speaker, _ in sizes.most_common(SPEAKERS))
    rows = [
        [speaker, *(counts[speaker, number] for number, _ in used), sizes[speaker], minutes[speaker]]
        for speaker in shown
    ]
    whole = Counter(dataset.labels if dataset.classes else ())
    rows.append(["all", *(whole[number] for number, _ in used), len(seconds), sum(seconds) / 60])
    if len(sizes) > len(shown):
        rows[-1][0] = f"all {len(sizes)} speakers, of whom those with most utterances are shown"
    return ["speaker", *(name for _, name in used), "utterances", "minutes"], rows


def _durations(dataset: Dataset, seconds: list[float]) -> tuple[list[str], list[list]]:
    """Return header and rows: utterances, minutes and quantiles of the seconds of each class and of all."""
    groups = defaultdict(list)
    for length, label in zip(seconds, dataset.labels):
        groups[label].append(length)
    rows = [[name, *_spread(groups[number])] for number, name in _used(dataset)]
    header = ["durations", "utterances", "minutes", "shortest (s)", "median (s)", "longest (s)"]
    return header, [*rows, ["all", *_spread(seconds)]]


def _spread(seconds: list[float]) -> list:
    return [len(seconds), sum(seconds) / 60,
            *(f"{value:.2f}" for value in (min(seconds), statistics.median(seconds), max(seconds)))]  # fmt: skip


def _values(dataset: Dataset) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: mean, deviation and range of each target."""
    rows = [
        [name, *(f"{of(column):.4g}" for of in (statistics.fmean, statistics.pstdev, min, max))]
        for name, column in zip(dataset.targets, zip(*dataset.labels))
    ]
    return ["values", "mean", "deviation", "smallest", "largest"], rows

"""The picture of a corpus: utterances of each speaker and class, and durations by class."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ser_fast.data.summary import Share, Summary
from ser_fast.data.utterance import plural
from ser_fast.reports.figures import BLUE, plain_axes, save, shortened, style, wrapped

_NAMED = 40  # speakers with a name, and counts in their cells
_COLUMNS = 20  # classes with a name, and a histogram of their own
_CELLS = 1_000_000  # of a heat map
_LETTERS = 18  # of a name
_BINS = 40
_WIDTH = 5.0  # inches of the histograms


@style()
def draw(summary: Summary, path: Path) -> Path:
    """Draw the utterances of each speaker and class as a heat map, and the durations of each class as a histogram.

    Args:
        summary: the corpus; without classes, or with very many, it has a bar for each speaker, no heat map.
        path: the PNG file.
    """
    histograms = summary.classes if 0 < len(summary.classes) <= _COLUMNS else [summary.whole]
    width = 1.8 + 0.46 * min(max(len(summary.classes), 4), _COLUMNS)
    height = max(3.2, 1.3 + 0.24 * min(len(summary.speakers), _NAMED), 0.6 + 0.5 * len(histograms))
    figure = Figure(figsize=(width + _WIDTH, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(width, _WIDTH))
    _speakers(left.subplots(), summary)
    _durations(right, histograms)
    figure.suptitle(wrapped(f"{summary.name}: {plural(summary.whole.utterances, 'utterance')}", 90), fontsize=10)
    return save(figure, path)


def _speakers(axes, summary: Summary) -> None:
    names = [shortened(one.name, _LETTERS) for one in summary.speakers]
    named = len(names) <= _NAMED
    if summary.classes and len(names) * len(summary.classes) <= _CELLS:
        counts = np.array([[summary.counts[s.name, c.name] for c in summary.classes] for s in summary.speakers])
        axes.imshow(counts, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        few = len(summary.classes) <= _COLUMNS
        for (row, column), count in np.ndenumerate(counts if named and few else counts[:0]):
            color = "white" if count > 0.55 * counts.max() else "#333333"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
        labels = [shortened(one.name, _LETTERS) for one in summary.classes] if few else []
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=9)
        axes.set_xlabel("" if few else f"{len(summary.classes)} classes")
    else:
        axes.barh(range(len(names)), [one.utterances for one in summary.speakers], color=BLUE)
        axes.invert_yaxis()
        axes.set_xlabel("utterances")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_yticks(range(len(names)) if named else [], names if named else [], fontsize=9)
    axes.set_ylabel("speaker" if named else f"{len(names)} speakers")
    axes.set_title("utterances of each speaker", fontsize=10)


def _durations(figure, shares: list[Share]) -> None:
    """Draw a histogram of each share, one below the other, with the same bins."""
    known = np.concatenate([one.durations for one in shares] or [[]])
    every = np.ravel(figure.subplots(len(shares), 1, sharex=True))
    edges = np.linspace(0, known.max() if len(known) else 1.0, _BINS + 1)
    for axes, one in zip(every, shares):
        axes.hist(one.durations, edges, color=BLUE)
        plain_axes(axes)
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True, min_n_ticks=1))
        axes.tick_params(labelsize=8)
        if len(shares) > 1:
            axes.set_ylabel(shortened(one.name, _LETTERS), rotation=0, ha="right", va="center", fontsize=9)
    every[0].set_title("utterances by duration", fontsize=10)
    every[-1].set(xlabel="seconds", xlim=(0, edges[-1]))

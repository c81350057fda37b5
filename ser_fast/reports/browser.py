"""The tested utterances on a page: a table to sort and filter, with audio, spectrogram and attention."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_fast.data.files import printable
from ser_fast.reports import html
from ser_fast.reports.embedded import Embedded
from ser_fast.training.predictions import Prediction, as_rows
from ser_fast.training.results import Results

ROWS = 20_000  # of the table, 3 MB of a page
CLASSES = 60  # of the confusion matrix, 0.6 MB of a page
DARK = 0.765  # share of a row from which white text has more contrast than black; both have at least 4.5:1 there
_SCRIPT, _STYLE = (Path(__file__).with_name(f"browser.{kind}") for kind in ("js", "css"))
_TEMPLATE = """<div id="browser">
{matrix}
<h3>List</h3>
<form id="filters" aria-label="filters"></form>
<p id="count" role="status"></p>
<div class="wide"><table id="utterances"><thead></thead><tbody></tbody></table></div>
<p><button type="button" id="more" hidden>Show more</button></p>
<noscript><p class="note">The list of utterances needs JavaScript.</p></noscript>
</div>"""


class Row(NamedTuple):
    """A tested utterance.

    Attributes:
        run: number of the run in ``Results.tested``.
        item: number of the utterance in the dataset; None if the table of predictions names another one.
        prediction: the prediction.
        margin: probability of the true class above the highest of the others, or minus the error; low is wrong.
        error: mean over the targets of the absolute errors, in deviations if there are several; 0 for classes.
    """

    run: int
    item: int | None
    prediction: Prediction
    margin: float
    error: float


def section(results: Results, page: Path) -> list[str]:
    """Return the part of a page that lists the tested utterances, the worst predictions first.

    Names are in it as JSON, which its script shows as text. For audio, spectrograms and attention see
    :class:`ser_fast.reports.embedded.Embedded`.

    Args:
        results: what was tested; the models are read from their checkpoints.
        page: the HTML file.
    """
    found = rows(results)
    shown = found[:ROWS]
    embedded = Embedded(results, [(row.run, row.item) for row in shown], page)
    names, runs = sorted({row.prediction.speaker for row in shown}), [tested.name for tested in results.tested]
    number = {name: place for place, name in enumerate(names)}
    classes = results.dataset.classes
    counts = Counter((row.prediction.truth, row.prediction.predicted) for row in found)
    content = {
        "classes": list(map(printable, classes)),
        "targets": list(map(printable, results.dataset.targets)),
        "speakers": list(map(printable, names)),
        "runs": list(map(printable, runs)) if len(runs) > 1 else [],
        "rows": [_row(results, row, number) for row in shown],
        "links": {item: media["link"] for item, media in embedded.items.items() if "link" in media},
        "attention": embedded.attention,
        "left": embedded.left,
    }
    lines = [" ".join(embedded.sentences())]
    if len(found) > len(shown):
        lines.append(f"The table has the {len(shown)} worst of {len(found)} predictions.")
    return [
        html.heading("Utterances"),
        *map(html.note, lines),
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style>",
        _TEMPLATE.format(matrix=_matrix(counts, classes) if classes else ""),
        html.data("browser-data", content),
        # An element each: a browser takes seconds for one of many megabytes.
        *(html.data(f"media-{item}", media) for item, media in embedded.items.items() if media.keys() != {"link"}),
        html.script(_SCRIPT),
    ]


def rows(results: Results) -> list[Row]:
    """Return all that was tested, the worst predictions first."""
    dataset = results.dataset
    every = [
        (run, i if dataset.names[i] == prediction.name else None, prediction)
        for run, tested in enumerate(results.tested)
        for i, prediction in zip(tested.index, tested.predictions, strict=True)
    ]
    if dataset.classes:
        found = [Row(*each, _margin(each[-1], dataset.classes), 0.0) for each in every]
    else:
        found = [Row(*each, -error, error) for each, error in zip(every, _errors([each[-1] for each in every]))]
    return sorted(found, key=lambda row: row.margin)


def _margin(prediction: Prediction, classes: Sequence[str]) -> float:
    right = prediction.truth == prediction.predicted
    if not prediction.probabilities:  # of a run of an older version
        return 1.0 if right else -1.0
    place = classes.index(prediction.truth)
    others = [p for number, p in enumerate(prediction.probabilities) if number != place]
    margin = prediction.probabilities[place] - max(others, default=0.0)
    return margin if right else min(margin, 0.0)  # equal to rounding in a table


def _errors(predictions: list[Prediction]) -> list[float]:
    columns = list(zip(*(zip(*rows) for rows in as_rows(predictions))))  # of each target, true and predicted
    scales = [statistics.pstdev(truth) or 1.0 for truth, _ in columns] if len(columns) > 1 else [1.0]
    errors = [[abs(a - b) / scale for a, b in zip(*column)] for column, scale in zip(columns, scales)]
    return [statistics.fmean(each) for each in zip(*errors)]


def _row(results: Results, row: Row, speakers: dict[str, int]) -> list:
    """Return a row of the page's data: see ``columns`` in browser.js."""
    prediction, classes = row.prediction, results.dataset.classes
    if classes:
        outcome = [classes.index(prediction.truth), classes.index(prediction.predicted)]
    else:
        outcome = [values[0] for values in as_rows([prediction])]
    seconds = None if row.item is None else round(results.dataset.lengths[row.item] / results.sample_rate, 3)
    probabilities = [round(p, 4) for p in prediction.probabilities]
    error = float(f"{row.error:.4g}")
    who = [printable(prediction.name), speakers[prediction.speaker]]
    return [*who, *outcome, probabilities, error, seconds, row.run, row.item]


def _matrix(counts: Counter[tuple[str, str]], classes: Sequence[str]) -> str:
    """Return the confusion matrix as a table of buttons, of up to :data:`CLASSES` classes with most errors.

    Args:
        counts: number of utterances of each true and predicted class.
        classes: all classes; those that occur in neither are left out.
    """
    sums, errors = Counter(), Counter()
    for (true, predicted), count in counts.items():
        sums[true] += count
        for name in (true, predicted):
            errors[name] += count * (true != predicted)
    used = [name for name in classes if name in errors]
    most = set(sorted(used, key=errors.get, reverse=True)[:CLASSES])
    shown = [(number, name) for number, name in enumerate(classes) if name in most]

    def cell(true: int, row: str, predicted: int, column: str) -> str:
        count = counts[row, column]
        share = count / max(sums[row], 1)
        dark = ' class="dark"' if share > DARK else ""
        words = html.escaped(f"true {row}, predicted {column}: {count}")
        return (
            f'<td><button type="button" data-true="{true}" data-predicted="{predicted}" aria-pressed="false"{dark} '
            f'aria-label="{words}" style="--share:{share:.2f}"{"" if count else " disabled"}>{count}</button></td>'
        )

    head = "".join(f'<th scope="col">{html.escaped(name)}</th>' for _, name in shown)
    body = "".join(
        f'<tr><th scope="row">{html.escaped(row)}</th>{"".join(cell(i, row, j, name) for j, name in shown)}</tr>'
        for i, row in shown
    )
    caption = "Utterances by true class (rows) and predicted class; select a number to list its utterances."
    if len(used) > len(shown):
        caption += f" Of {len(used)} classes the {len(shown)} with most errors are shown."
    return (
        f'<div class="wide"><table id="confusion"><caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )

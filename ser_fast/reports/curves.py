"""Learning curves of runs: what a figure and a page draw, and the part of a page that draws them."""

import base64
import gzip
from pathlib import Path
from typing import NamedTuple

from ser_fast.data.files import printable
from ser_fast.reports import html

_SCRIPT = Path(__file__).with_name("curves.js")
_ID = "curves"
_PIECE = 1 << 15


class Line(NamedTuple):
    """A curve of one run: its name, the epochs, a value for each; ``dotted`` is that of the validation part."""

    name: str
    epochs: list[int]
    values: list[float]
    dotted: bool = False


class Panel(NamedTuple):
    """Curves with the label and the range of their values; an end that is None follows from the values."""

    label: str
    low: float | None
    top: float | None
    lines: list[Line]


def panels(runs: dict[str, list[dict]]) -> tuple[Panel, Panel]:
    """Return training and validation loss, and validation UA or MAE, of runs; CCC for several targets.

    Without a validation part the second panel has the training accuracy, or the loss.

    Args:
        runs: rows of ``metrics.jsonl`` by the name of the run.
    """
    share = not any("valid_mae" in rows[0] for rows in runs.values())
    counted = all("accuracy" in row for rows in runs.values() for row in rows)
    several = any("valid_standardised_mae" in rows[0] for rows in runs.values())
    validated = any("valid_loss" in rows[0] for rows in runs.values())
    measure = "valid_recall" if share else "valid_ccc" if several else "valid_mae"
    losses, measures = [], []
    for name, rows in runs.items():
        epochs = [row["epoch"] for row in rows]
        losses.append(Line(name, epochs, [row["loss"] for row in rows]))
        if "valid_loss" not in rows[0]:
            values = [100 * row["accuracy"] if counted else row["loss"] for row in rows]
        else:
            losses.append(Line(name, epochs, [row["valid_loss"] for row in rows], True))
            values = [100 * row[measure] if share else row[measure] for row in rows]
        measures.append(Line(name, epochs, values))
    label, low, top = ("validation UA (%)", 0, 100) if share else ("validation MAE", 0, None)
    if several:
        label, low, top = "validation CCC, mean of the targets", None, 1
    if not validated:
        label, low, top = ("training accuracy (%)", 0, 100) if counted else ("training loss", 0, None)
    loss = "loss (dotted: validation)" if validated else "loss"
    return Panel(loss, 0, None, losses), Panel(label, low, top, measures)


def section(runs: dict[str, list[dict]]) -> list[str]:
    """Return the part of a page that draws the curves with Plotly, which takes the place of a picture named "loss".

    Plotly is compressed in the page, 2 MB; without the package a note says how to install it.

    Args:
        runs: as in :func:`panels`; runs without rows are left out.
    """
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        return []
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return [
            html.note("Learning curves with values under the pointer need plotly: pip install 'ser_fast[report]'")
        ]
    drawn = [panel._replace(lines=[line._replace(name=_name(line.name)) for line in panel.lines])._asdict()
             for panel in panels(runs)]  # fmt: skip
    for panel in drawn:
        panel["lines"] = [line._asdict() for line in panel["lines"]]
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return [
        html.heading("Learning curves"),
        f'<div id="{_ID}" role="group" aria-label="loss and measure of each epoch"></div>',
        html.data(f"{_ID}-data", drawn),
        # In pieces: a browser takes seconds for one element of many megabytes.
        *(
            f'<script type="text/plain" class="{_ID}-library">{packed[begin : begin + _PIECE]}</script>'
            for begin in range(0, len(packed), _PIECE)
        ),
        html.script(_SCRIPT),
    ]


def _name(name: str) -> str:
    """Return a name that Plotly, which draws some of HTML's tags in texts, shows literally."""
    return printable(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""The report of a run: one self-contained HTML page with numbers and pictures."""

import base64
import html
import json
from pathlib import Path

from ser_fast.backends import info
from ser_fast.data.files import printable, write_atomically

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem;
  overflow-wrap: break-word }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 0.8rem 0 }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; border-bottom: 1px solid #e4e6ea }
th:first-child, td:first-child { text-align: left }
.wide, pre { overflow-x: auto }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption, p.note { color: #626a74 }
"""


def escaped(text: object) -> str:
    """Return a line as HTML shows it, control characters and bytes that are not UTF-8 as escapes."""
    return html.escape(printable(text))


def table(header: list[str], rows: list[list]) -> str:
    """Return an HTML table; floats are shown with one decimal."""

    def cell(value) -> str:
        return escaped(f"{value:.1f}" if isinstance(value, float) else value)

    head = "".join(f'<th scope="col">{cell(value)}</th>' for value in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Shown(dict):
    """The content of a ``summary.json``, which a notebook shows as parts of its report.

    Args:
        summary: the content.
        parts: HTML parts.
        page: the report.
    """

    def __init__(self, summary: dict, parts: list[str], page: Path):
        super().__init__(summary)
        self.parts, self.page = parts, page

    def _repr_html_(self) -> str:
        return "".join([*self.parts, note(f"report: {self.page}")])


def titled(title: str, header: list[str], rows: list[list]) -> str:
    """Return an HTML table whose first column has a title."""
    return table([title if name in ("", "speaker") else name for name in header], rows)


CLASSIFICATION = {"accuracy": "accuracy %", "recall": "recall (UA) %", "precision": "precision %", "f1": "F1 %"}
REGRESSION = {"ccc": "CCC", "mae": "MAE", "corr": "Pearson r", "acc2": "Acc-2 %", "f1": "F1 %", "acc5": "Acc-5 %"}


ONE_SPEAKER = "one speaker: no interval"


def measures(metrics: dict) -> dict[str, str]:
    """Return the headings of the measures that a report shows, by their key in the metrics."""
    known = REGRESSION if "mae" in metrics else CLASSIFICATION
    return {key: heading for key, heading in known.items() if key in metrics}


def number(name: str, value: float) -> str:
    """Return a measure as a report shows it: shares in percent, MAE in the corpus's unit, CCC and correlation."""
    if name == "mae":
        return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1e6 else f"{value:.3g}"
    return f"{value:.3f}" if name in ("ccc", "corr") else f"{100 * value:.1f}"


def scores(named: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table and a row for each of the named metrics; of several targets also one for each."""
    shown = measures(next(iter(named.values())))
    lines = {}
    for name, metrics in named.items():
        parts = metrics.get("per_target", {})
        lines |= {f"{name}: {target}": found for target, found in parts.items()}
        lines[f"{name}: mean of the targets" if parts else name] = metrics
    rows = [[name, *(number(key, metrics[key]) for key in shown)] for name, metrics in lines.items()]
    return ["", *shown.values()], rows


def per_class(metrics: dict) -> str:
    """Return an HTML table of the metrics of each class."""
    rows = [
        [name, *(100 * entry[key] for key in ("recall", "precision", "f1")), entry["support"]]
        for name, entry in metrics["per_class"].items()
    ]
    return table(["class", "recall %", "precision %", "F1 %", "utterances"], rows)


def intervals(result: dict) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table of intervals over speakers and a row for each.

    Args:
        result: what :func:`ser_fast.training.speakers.by_speaker` returns.

    A single speaker has no interval, which the rows say.
    """
    parts = result.get("per_target", {})
    rows = [row for name, found in parts.items() for row in _intervals(result, found, f"{name}, ")]
    rows += _intervals(result, result, "mean of the targets, " if parts else "")
    return ["", "value", "95 % from", "to"], rows


def _intervals(result: dict, part: dict, before: str) -> list[list[str]]:
    """Return the rows of the intervals of a part, such as a target; ``before`` begins their first cells."""
    shown = measures(result["metrics"])
    pooled = f"all utterances, bootstrap over speakers, {result['bootstrap']['draws']} draws"

    def row(key: str, words: str, value: float, low: float | None, high: float | None) -> list[str]:
        ends = [ONE_SPEAKER, ""] if low is None or high is None else [number(key, low), number(key, high)]
        return [f"{before}{shown[key]}: {words}", number(key, value), *ends]

    rows = []
    for key, found in part["intervals"].items():
        rows.append(row(key, pooled, *found["pooled"].values()))
        rows.append(row(key, "mean of the speakers, t interval", *found["speakers"].values()))
    return rows


def per_speaker(result: dict) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table of the speakers and a row for each; arguments as in :func:`intervals`."""
    keys = list(result["intervals"])
    shown = measures(result["metrics"])
    rows = [
        [name, str(found["utterances"]), *(number(key, found[key]) for key in keys)]
        for name, found in result["per_speaker"].items()
    ]
    return ["speaker", "utterances", *(shown[key] for key in keys)], rows


def speakers(result: dict) -> list[str]:
    """Return HTML tables of the speakers, also one for each of several targets; arguments as :func:`intervals`."""
    per_target = result.get("per_target", {})
    return [
        table(*per_speaker(result)),
        *(titled(name, *per_speaker(result | part)) for name, part in per_target.items()),
    ]


def picture(path: Path, caption: str) -> str:
    """Return an HTML figure with the PNG file inside."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escaped(path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escaped(caption)}</figcaption></figure>"


def machine() -> str:
    """Return a note on the machine and the versions."""
    return note(info.sentence())


def write(path: Path, title: str, parts: list[str]) -> Path:
    """Write a page of HTML parts; return its path."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title>"
        f"<style>{STYLE}</style><h1>{escaped(title)}</h1>{''.join(parts)}</html>\n"
    )
    write_atomically(path, page.encode(errors="backslashreplace"))
    return path


def note(text: str) -> str:
    """Return a paragraph in small print."""
    return f'<p class="note">{escaped(text)}</p>'


def data(name: str, value: object) -> str:
    """Return a script element with the id ``name`` that holds a value as JSON; no text in it ends the element.

    Raises:
        ValueError: a number is infinite or not a number, which JSON cannot hold.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # in ASCII
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def script(path: Path) -> str:
    """Return a script element with a file of this package."""
    return f"<script>{path.read_text(encoding='utf-8')}</script>"


def preformatted(text: str) -> str:
    """Return text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def heading(text: str) -> str:
    """Return a heading of the second level."""
    return f"<h2>{escaped(text)}</h2>"

"""A run's report: one HTML page with its numbers and its pictures inside, to open anywhere."""

import base64
import html
from pathlib import Path

from ser_fast.backends import info
from ser_fast.data.files import write_atomically

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 0.8rem 0 }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; border-bottom: 1px solid #e4e6ea }
th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption, p.note { color: #626a74 }
"""


def table(header: list[str], rows: list[list]) -> str:
    """An HTML table; floats are shown with one decimal."""

    def cell(value) -> str:
        return html.escape(f"{value:.1f}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{cell(value)}</th>" for value in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


CLASSIFICATION = {"accuracy": "accuracy %", "recall": "recall (UA) %", "precision": "precision %", "f1": "F1 %"}
REGRESSION = {"mae": "MAE", "corr": "Pearson r", "acc2": "Acc-2 %", "f1": "F1 %", "acc5": "Acc-5 %"}


def measures(metrics: dict) -> dict[str, str]:
    """The measures that are shown of these metrics, by their key, with their heading."""
    return REGRESSION if "mae" in metrics else CLASSIFICATION


def number(name: str, value: float) -> str:
    """A measure as it is shown: shares in percent."""
    return f"{value:.3f}" if name in ("mae", "corr") else f"{100 * value:.1f}"


def scores(named: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """A table's header, and a row for each of the metrics."""
    shown = measures(next(iter(named.values())))
    rows = [[name, *(number(key, metrics[key]) for key in shown)] for name, metrics in named.items()]
    return ["", *shown.values()], rows


def per_class(metrics: dict) -> str:
    rows = [
        [name, *(100 * entry[key] for key in ("recall", "precision", "f1")), entry["support"]]
        for name, entry in metrics["per_class"].items()
    ]
    return table(["class", "recall %", "precision %", "F1 %", "utterances"], rows)


def picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def machine() -> str:
    """Where the figures come from."""
    return note(info.sentence())


def write(path: Path, title: str, parts: list[str]) -> Path:
    """Write the page of these HTML parts."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
    write_atomically(path, page.encode())
    return path


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"

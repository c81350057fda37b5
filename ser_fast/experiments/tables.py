"""Results of an experiment and their files: table as Markdown and CSV, numbers as JSON, figure as PNG."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ser_fast.backends.info import sentence
from ser_fast.data.files import write_atomically
from ser_fast.data.tables import to_csv
from ser_fast.training import metrics


class Table(NamedTuple):
    """Header and rows of a printed table."""

    header: list[str]
    rows: list[list[str]]


@dataclass
class Result:
    """Result of an experiment.

    Args:
        table: our numbers beside the paper's.
        draw: draws the figure into a file.
        numbers: all numbers behind the table and the figure, for JSON.
        protocol: how training and test data were separated, in a sentence.
        verdicts: the paper's claims, each with whether it holds here.
        notes: remarks on this experiment, printed below the table.
        more: further tables by title.
    """

    table: Table
    draw: Callable[[Path], object]
    numbers: dict
    protocol: str
    verdicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: dict[str, Table] = field(default_factory=dict)


def by_fold(summary: dict, measure: str) -> dict[str, float]:
    """Return a measure of each fold, averaged over seeds: folds, not seeds, are the sample of an interval."""
    values: dict[str, list[float]] = {}
    for run in summary["runs"]:
        values.setdefault(run["fold"], []).append(run["metrics"][measure])
    return {fold: statistics.fmean(found) for fold, found in values.items()}


def interval(summary: dict, measure: str) -> dict:
    """Return :func:`ser_fast.training.metrics.interval` of a measure over the folds, within its range."""
    return metrics.interval(list(by_fold(summary, measure).values()), *metrics.RANGES.get(measure, ()))


def over_speakers(summary: dict, measure: str = "recall") -> str:
    """Return the ends of a measure's interval over the speakers, each the mean of its seeds, in percent.

    A measure that no speaker has, such as the precision, has "none".
    """
    if measure not in summary["intervals"]:
        return "none"
    found = summary["intervals"][measure]["speakers"]
    return "one speaker" if found["low"] is None else ends(found)


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal; None as "none"."""
    return "none" if value is None else f"{100 * value:.1f}"


def spread(summary: dict, measure: str) -> str:
    """Return mean ± standard deviation over the folds, in percent."""
    mean, std = summary["folds"][measure]
    return percent(mean) + ("" if std is None else f" ± {percent(std)}")


def ends(found: dict) -> str:
    """Return the ends of an interval as text, in percent."""
    return "one fold" if found["low"] is None else f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"


def holds(claim: bool) -> str:
    """Return "holds here" or "does not hold here", for a claim that is not tested with an interval."""
    return "holds here" if claim else "does not hold here"


def verdict(found: dict) -> str:
    """Return the verdict of an interval on the claim that the difference is above 0."""
    if found["low"] is None:
        return "not tested"
    if found["low"] > 0:
        return "confirmed"
    return "contradicted" if found["high"] < 0 else "not confirmed"


def markdown(table: Table) -> str:
    """Return a table as Markdown, all columns but the first right-aligned."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

    aligned = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([line(table.header), line(aligned), *map(line, table.rows)]) + "\n"


def write(name: str, title: str, sections: dict[str, list[str]], result: Result, about: dict, out: Path) -> None:
    """Write ``out/name`` as .md, .csv, .json and .png.

    Args:
        name: file name without suffix.
        title: heading of the Markdown file.
        sections: sentences by heading; empty lists are omitted.
        result: table, figure and numbers.
        about: further keys of the JSON file.
        out: folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    result.draw(out / f"{name}.png")
    write_atomically(out / f"{name}.csv", to_csv([result.table.header, *result.table.rows]).encode())
    machine = sentence()
    numbers = about | {"protocol": result.protocol, "machine": machine, "said": sections} | result.numbers
    write_atomically(out / f"{name}.json", (json.dumps(numbers, indent=1) + "\n").encode())
    parts = [f"# {title}\n", markdown(result.table)]
    for heading, table in result.more.items():
        parts += [f"## {heading}\n", markdown(table)]
    parts.append(f"![{name}]({name}.png)\n")
    for heading, sentences in sections.items():
        if sentences:
            parts += [f"## {heading}\n", "".join(f"- {sentence}\n" for sentence in sentences)]
    parts.append(f"Measured with {machine}.\n")
    write_atomically(out / f"{name}.md", "\n".join(parts).encode(errors="backslashreplace"))

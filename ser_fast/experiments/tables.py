"""What an experiment leaves: its table as Markdown and CSV, its numbers as JSON, and the figure."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ser_fast.backends.info import sentence
from ser_fast.data.files import write_atomically
from ser_fast.training import metrics


class Table(NamedTuple):
    """A header and rows of what is shown."""

    header: list[str]
    rows: list[list[str]]


@dataclass
class Result:
    """What an experiment found.

    Args:
        table: ours beside the paper's.
        draw: draws the figure into a file.
        numbers: everything that the table and the figure are made from, for JSON.
        protocol: how training and test were parted, in a sentence.
        verdicts: what the paper claims, each confirmed or not.
        notes: what a reader of the table must know of this experiment.
        more: further tables by their titles.
    """

    table: Table
    draw: Callable[[Path], object]
    numbers: dict
    protocol: str
    verdicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: dict[str, Table] = field(default_factory=dict)


def by_fold(summary: dict, measure: str) -> dict[str, float]:
    """A measure of each fold, the mean of its seeds: the tested part is what is drawn, not the seed."""
    values: dict[str, list[float]] = {}
    for run in summary["runs"]:
        values.setdefault(run["fold"], []).append(run["metrics"][measure])
    return {fold: statistics.fmean(found) for fold, found in values.items()}


def interval(summary: dict, measure: str) -> dict:
    """:func:`ser_fast.training.metrics.interval` of a measure over the folds."""
    return metrics.interval(list(by_fold(summary, measure).values()))


def percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}"


def spread(summary: dict, measure: str) -> str:
    """Mean ± standard deviation in percent."""
    mean, std = summary["folds"][measure]
    return percent(mean) + ("" if std is None else f" ± {percent(std)}")


def ends(found: dict) -> str:
    """The ends of an interval, in percent."""
    return "one fold" if found["low"] is None else f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"


def verdict(found: dict) -> str:
    """What an interval says of the claim that its mean is above 0."""
    if found["low"] is None:
        return "not tested"
    if found["low"] > 0:
        return "confirmed"
    return "contradicted" if found["high"] < 0 else "not confirmed"


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

    aligned = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join([line(table.header), line(aligned), *map(line, table.rows)]) + "\n"


def write(name: str, title: str, said: dict[str, list[str]], result: Result, described: dict, out: Path) -> None:
    """Write ``out/name`` with the suffixes .md, .csv, .json and .png; ``said`` are lists under their headings."""
    out.mkdir(parents=True, exist_ok=True)
    result.draw(out / f"{name}.png")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([result.table.header, *result.table.rows])
    write_atomically(out / f"{name}.csv", text.getvalue().encode())
    machine = sentence()
    numbers = described | {"protocol": result.protocol, "machine": machine, "said": said} | result.numbers
    write_atomically(out / f"{name}.json", (json.dumps(numbers, indent=1) + "\n").encode())
    parts = [f"# {title}\n", markdown(result.table)]
    for heading, table in result.more.items():
        parts += [f"## {heading}\n", markdown(table)]
    parts.append(f"![{name}]({name}.png)\n")
    for heading, sentences in said.items():
        if sentences:
            parts += [f"## {heading}\n", "".join(f"- {sentence}\n" for sentence in sentences)]
    parts.append(f"Measured with {machine}.\n")
    write_atomically(out / f"{name}.md", "\n".join(parts).encode())

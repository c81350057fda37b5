"""A corpus listed in a CSV or JSONL table."""

import csv
import io
import json
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from ser_fast.corpora.utterance import Corpus, Utterance

SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("file", "speaker", "label")
OPTIONAL = ("start", "end")


def manifest(path: str | PathLike[str]) -> Corpus:
    """The utterances listed in a table with the columns ``file,speaker,label[,start,end]``.

    A ``.csv`` has a header row, a ``.jsonl`` one object a line; both are UTF-8. Other columns and blank
    lines are ignored. Relative files are relative to the table's folder; ``start`` and ``end`` are seconds,
    empty or null for the file's beginning or end. The classes are sorted.

    Raises:
        OSError: the table cannot be read.
        ValueError: the table is malformed; names the line, the column, the value and what is allowed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"manifest {str(path)!r} has the suffix {suffix!r}, allowed: {', '.join(SUFFIXES)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"manifest {str(path)!r} has a bad byte at {error.start}, allowed: UTF-8") from error

    read_rows = _csv_rows if suffix == ".csv" else _jsonl_rows
    utterances = [_utterance(row, place, path.parent) for place, row in read_rows(text, str(path))]
    if not utterances:
        raise ValueError(f"manifest {str(path)!r} lists 0 utterances, allowed: at least one")
    return Corpus(path.stem, utterances, sorted({utterance.label for utterance in utterances}))


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [column.strip() for column in reader.fieldnames or []]
        for column in REQUIRED + OPTIONAL:
            count = header.count(column)
            if count > 1 or (count == 0 and column in REQUIRED):
                raise ValueError(f"{name}, line 1: column {column!r} occurs {count} times in {header}, allowed: once")
        reader.fieldnames = header
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            # DictReader keeps the cells beyond the header under None; an unquoted comma shifts the columns.
            if None in row:
                cells = len(header) + len(row[None])
                raise ValueError(f"{place}: {cells} cells, allowed: {len(header)}, as in the header")
            yield place, row
    except csv.Error as error:
        # line_num is still that of the last good row; an open quote would otherwise blame the last line.
        place = f"{name}, line {reader.line_num + 1}"
        raise ValueError(f"{place}: {error}, allowed: comma-separated values") from error


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines(): JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: {error}, allowed: one JSON object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: value {row!r}, allowed: a JSON object")
        yield place, row


def _utterance(row: dict[str, Any], place: str, folder: Path) -> Utterance:
    file, speaker, label = (_text(row, column, place) for column in REQUIRED)
    start, end = (_seconds(row, column, place) for column in OPTIONAL)
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{place}: column 'end' is {end}, allowed: more than start, {start or 0.0}")
    whole = start is None and end is None
    name = file if whole else f"{file}[{'' if start is None else start}:{'' if end is None else end}]"
    return Utterance(name, speaker, label, folder / file, start, end)


def _text(row: dict[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    # JSON speakers and labels are often numbers.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if value is None else repr(value)
        raise ValueError(f"{place}: column {column!r} is {found}, allowed: a text that is not empty")
    return value.strip()


def _seconds(row: dict[str, Any], column: str, place: str) -> float | None:
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{place}: column {column!r} is {value!r}, allowed: a number of seconds >= 0")
    return seconds

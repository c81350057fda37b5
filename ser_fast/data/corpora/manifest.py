"""A corpus listed in a CSV or JSONL table."""

import csv
import difflib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.labels import merge_spellings
from ser_fast.data.corpora.trees import quoted
from ser_fast.data.files import printable, write_atomically
from ser_fast.data.tables import from_cell, to_csv
from ser_fast.data.utterance import PARTS, Corpus, Utterance

SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("file", "speaker")
TARGETS = ("label", "value")
OPTIONAL = ("start", "end", "part")
SCALE = "sentiment_scale"
_LONGEST = 4096  # characters of a name; of a path on Linux


def manifest(path: str | PathLike[str]) -> Corpus:
    """Return the utterances listed in a table with the columns ``file,speaker,label[,start,end,part]``.

    ``file`` may be relative to the folder of the table. ``start`` and ``end`` are seconds; empty or null is the
    beginning or the end of the file. ``part`` is ``train``, ``valid`` or ``test``, for all utterances or none. For a
    regression the column ``value``, a finite number, replaces ``label``. A column ``sentiment_scale``, 1 or 3 in all
    rows, declares values from -1 to 1 or from -3 to 3 as sentiment, for which Acc-2, F1 and the like are measured.
    The classes are sorted; those that differ in case only are merged. Other columns and blank lines are ignored.

    Args:
        path: a ``.csv`` with a header row, or a ``.jsonl`` with one object a line; UTF-8.

    Raises:
        OSError: the table cannot be read.
        ValueError: the table is malformed; the message names the line, the column, the value and the constraint.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found = f"manifest {str(path)!r} has the suffix {suffix!r}"
    require(suffix in SUFFIXES, found, f"one of {', '.join(SUFFIXES)}")
    content = path.read_bytes()
    try:
        text = content.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte 0x{content[error.start]:02x}; it must be UTF-8") from error

    read_rows = _csv_rows if suffix == ".csv" else _jsonl_rows
    rows = list(read_rows(text, str(path)))
    require(bool(rows), f"manifest {str(path)!r} lists 0 utterances", "a table of at least one")
    target = _target(rows)
    utterances = [_utterance(row, place, path.parent, target) for place, row in rows]
    more = {"sentiment_scale": _scale(rows)} if target == "value" else {}
    if target == "label":
        utterances, more["notes"] = merge_spellings(utterances)
    classes = sorted({utterance.label for utterance in utterances}) if target == "label" else []
    try:
        return Corpus(path.stem, utterances, classes, **more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_manifest(corpus: Corpus, out: Path) -> None:
    """Write a corpus as a ``.csv`` that :func:`manifest` reads; files below its folder get a relative path."""
    target = "label" if corpus.classes else "value"
    columns = [*REQUIRED, target, *(name for name in OPTIONAL if any(getattr(u, name) is not None
                                                                     for u in corpus.utterances))]  # fmt: skip
    folder = Path(os.path.abspath(out)).parent
    scale = {SCALE: f"{corpus.sentiment_scale:g}"} if corpus.sentiment_scale else {}
    rows = [[*columns, *scale]]
    for utterance in corpus.utterances:
        file = Path(os.path.abspath(utterance.path))
        file = file.relative_to(folder) if file.is_relative_to(folder) else file
        named = printable(file)
        require(named == str(file), f"file is {named}", "a name in UTF-8 without control characters; rename it")
        rows.append([file.as_posix(), *(getattr(utterance, name) for name in columns[1:]), *scale.values()])
    write_atomically(out, to_csv(rows).encode())


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [column.strip() for column in reader.fieldnames or []]
        required = (*REQUIRED, "value" if "value" in header else "label")
        _refuse_separators(header, required, name)
        for column in (*REQUIRED, *TARGETS, *OPTIONAL, SCALE):
            count = header.count(column)
            good = count == 1 or (count == 0 and column not in required)
            found = f"{name}, line 1: column {column!r} occurs {count} times in {quoted(header)}"
            require(good, found + (_closest(column, header) if count == 0 else ""), "there once")
        reader.fieldnames = header
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            # DictReader stores the cells beyond the header under None; an unquoted comma adds one.
            cells = len(header) + len(row.get(None, ()))
            require(None not in row, f"{place}: the number of cells is {cells}", f"{len(header)}, as in the header")
            yield place, {column: from_cell(cell) if cell else cell for column, cell in row.items()}
    except csv.Error as error:
        # line_num is that of the last good row; after an open quote the reader is at the last line.
        place = f"{name}, line {reader.line_num + 1}"
        raise ValueError(f"{place}: {error}; it must be comma-separated values") from error


def _refuse_separators(header: list[str], required: tuple[str, ...], name: str) -> None:
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if separator is None:
        return
    columns = [column.strip() for column in header[0].split(separator)]
    missing = (column for column in required if column not in columns)
    others = "".join(f", and column {column!r} is missing{_closest(column, columns)}" for column in missing)
    raise ValueError(f"{name}, line 1: columns are separated by {separator!r}{others}; it must be ','")


def _closest(column: str, columns: Iterable[str]) -> str:
    """Return `` (the closest is 'lable')``, or ``""`` if no column has a similar name."""
    names = {name.lower(): name for name in columns}
    return "".join(f" (the closest is {names[one]!r})" for one in difflib.get_close_matches(column, names, 1))


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines(): JSON strings may contain other line separators, such as U+2028.
    for number, line in enumerate(re.split("\r\n?|\n", text), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4300 digits
            raise ValueError(f"{place}: {str(error).partition(';')[0]}; it must be one JSON object") from error
        require(isinstance(row, dict), f"{place}: value is {quoted(row)}", "a JSON object")
        yield place, row


def _target(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Return ``"label"`` or ``"value"``, whichever column the table has."""
    target, other = ("value", "label") if "value" in rows[0][1] else ("label", "value")
    for place, row in rows:
        found = f"{place}: has {other!r} in a table of {target!r}"
        require(other not in row, found, "one of the two in the whole table")
    return target


def _scale(rows: list[tuple[str, dict[str, Any]]]) -> float:
    """Return the sentiment scale that every row declares, 0 without one."""
    found = [0.0 if _empty(row.get(SCALE)) else _number(row, SCALE, place, 1.0, "1 or 3") for place, row in rows]
    for (place, _), scale in zip(rows, found):
        good = scale == found[0] and scale in (0, 1, 3)
        require(good, f"{place}: column {SCALE!r} is {scale:g}", "1 in every row, 3 in every row, or left out")
    return found[0]


def _utterance(row: dict[str, Any], place: str, folder: Path, target: str) -> Utterance:
    file, speaker = (_text(row, column, place) for column in REQUIRED)
    label, value = "", None
    if target == "label":
        label = _text(row, "label", place)
    else:
        value = _number(row, "value", place, -math.inf, "a finite number")
    start, end = (_optional_seconds(row, column, place) for column in ("start", "end"))
    least = start or 0.0
    require(end is None or end > least, f"{place}: column 'end' is {end}", f"more than start, {least}")
    whole = start is None and end is None
    name = file if whole else f"{file}[{'' if start is None else start}:{'' if end is None else end}]"
    return Utterance(name, speaker, label, folder / file, start, end, value=value, part=_part(row, place))


def _text(row: dict[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    # JSON speakers and labels are often numbers.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    found = f"missing{_closest(column, row)}" if value is None else quoted(value)
    good = isinstance(value, str) and value.strip() != ""
    require(good, f"{place}: column {column!r} is {found}", "a text that is not empty")
    possible = len(value) <= _LONGEST and "\0" not in value and _encodes(value)
    require(
        possible, f"{place}: column {column!r} is {found}", f"at most {_LONGEST} characters that a file name can have"
    )
    return value.strip()


def _encodes(value: str) -> bool:
    """Return whether a text can be a file name; JSON may hold surrogates that no name has."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _part(row: dict[str, Any], place: str) -> str | None:
    if _empty(row.get("part")):
        return None
    part = _text(row, "part", place)
    require(part in PARTS, f"{place}: column 'part' is {quoted(part)}", f"one of {', '.join(PARTS)}")
    return part


def _optional_seconds(row: dict[str, Any], column: str, place: str) -> float | None:
    return None if _empty(row.get(column)) else _number(row, column, place, 0.0, "a number of seconds >= 0")


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _number(row: dict[str, Any], column: str, place: str, least: float, wanted: str) -> float:
    value = row.get(column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    found = "missing" if value is None else quoted(value)
    require(math.isfinite(number) and number >= least, f"{place}: column {column!r} is {found}", wanted)
    return number

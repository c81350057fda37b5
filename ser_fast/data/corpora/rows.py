"""Rows of a table of utterances: a label or a value, a speaker, and optional columns."""

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.labels import PART_NAMES, is_part, merge_spellings, part_of
from ser_fast.data.corpora.trees import quoted
from ser_fast.data.sources import Source
from ser_fast.data.utterance import RESERVED, VALUE, Corpus, Utterance, check_targets

SPEAKER = "speaker"
TARGETS = ("label", "value")
OPTIONAL = ("start", "end", "part", "group")
SCALE = "sentiment_scale"
SPLIT = "split"  # another name of the column "part"
# Other names that the columns of tables often have.
_USUAL = {
    "file": ("path", "filename", "filepath", "audio", "audio_path", "wav"),
    SPEAKER: ("spk", "speaker_id", "spk_id", "actor", "subject"),
    "label": ("emotion", "emo", "class", "category"),
}
_LONGEST = 4096  # characters of a name; of a path on Linux
_OURS: Mapping[str, str] = MappingProxyType({})  # no column has another name


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        place: table and line, for messages.
        cells: the value of each column, a text or a JSON value.
        name: name of the file, from which that of the utterance is made.
        path, source: the audio, as in :class:`ser_fast.data.utterance.Utterance`.
        columns: the names of columns in the table that are not those of ``cells``, for messages.
    """

    place: str
    cells: dict[str, Any]
    name: str
    path: Path | None = None
    source: Source | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def to_corpus(name: str, table: str, rows: Sequence[Row], targets: Sequence[str] = ()) -> Corpus:
    """Return the corpus of a table; its classes are sorted, and those that differ in case only are merged.

    Args:
        name: name of the corpus.
        table: the table, for messages.
        rows: its rows, with the columns ``speaker`` and ``label`` or ``value``, and ``start``, ``end``, ``part``,
            ``group`` and ``sentiment_scale`` as in :func:`ser_fast.data.corpora.manifest.manifest`. A column
            ``split`` is taken for ``part`` if there is none and it names parts.
        targets: columns of numbers to predict, in this order; without them ``label`` or ``value``.

    Raises:
        ValueError: a cell is malformed; the message names the row, the column, the value and the constraint. Or a
            target is no column.
    """
    _check_columns(table, rows, targets)
    target = "value" if targets else _target(rows)
    targets = list(targets) or ([VALUE] if target == "value" else [])
    part, notes = _part_column(rows)
    utterances = [_utterance(row, targets, part) for row in rows]
    more = {"targets": targets, SCALE: _scale(rows) if targets == [VALUE] else 0.0, "notes": notes}
    if target == "label":
        utterances, merged = merge_spellings(utterances)
        more["notes"] += merged
    classes = sorted({utterance.label for utterance in utterances}) if target == "label" else []
    try:
        return Corpus(name, utterances, classes, **more)
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _check_columns(table: str, rows: Sequence[Row], targets: Sequence[str]) -> None:
    """Refuse a target that is not in any row."""
    check_targets(targets)
    columns = dict.fromkeys(column for row in rows for column in row.cells)
    for name in targets:
        numeric = [column for column in columns if column not in RESERVED and _is_numeric(rows, column)]
        found = f"{table}: targets names {name!r}, which is no column{closest(name, numeric)}"
        require(name in columns, found, f"among the columns of numbers: {', '.join(numeric) or 'there are none'}")


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column holds numbers; some cells may be empty."""
    cells = [row.cells.get(column) for row in rows]
    cells = [cell for cell in cells if not empty(cell)]
    return bool(cells) and all(math.isfinite(_read(cell)) for cell in cells)


def _part_column(rows: Sequence[Row]) -> tuple[str, tuple[str, ...]]:
    """Return the column that names the parts, and a note if there is a ``split`` that names none."""
    named = {str(row.cells[SPLIT]) for row in rows if not empty(row.cells.get(SPLIT))}
    if not named or any(not empty(row.cells.get("part")) for row in rows):
        return "part", ()
    if any(map(is_part, named)):
        return SPLIT, ()
    return "part", (f"the column 'split' names no parts ({quoted(min(named))}) and is not used",)


def _utterance(row: Row, targets: Sequence[str], part_column: str) -> Utterance:
    cells, place, columns = row.cells, row.place, row.columns
    speaker = text(cells, SPEAKER, place, columns)
    label = "" if targets else text(cells, "label", place, columns)
    values = {name: _number(cells, name, place, -math.inf, "a finite number", columns) for name in targets}
    value = values.pop(VALUE, None)
    start, end = (optional_seconds(cells, column, place, columns) for column in ("start", "end"))
    least, called = start or 0.0, _called("end", columns)
    require(end is None or end > least, f"{place}: {called} is {end}", f"more than start, {least}")
    whole = start is None and end is None
    name = row.name if whole else f"{row.name}[{'' if start is None else start}:{'' if end is None else end}]"
    part = _part(cells, part_column, place, columns)
    group = None if empty(cells.get("group")) else text(cells, "group", place, columns)
    more = {"value": value, "values": values, "part": part, "source": row.source, "group": group}
    return Utterance(name, speaker, label, row.path, start, end, **more)


def _target(rows: Sequence[Row]) -> str:
    """Return ``"label"`` or ``"value"``, whichever column the table has."""
    has_value = "value" in rows[0].cells or "value" in rows[0].columns
    target, other = ("value", "label") if has_value else ("label", "value")
    for row in rows:
        found = f"{row.place}: has {other!r} in a table of {target!r}"
        require(other not in row.cells, found, "one of the two in the whole table")
    return target


def _scale(rows: Sequence[Row]) -> float:
    """Return the sentiment scale that every row declares, 0 without one."""
    found = [
        0.0 if empty(row.cells.get(SCALE)) else _number(row.cells, SCALE, row.place, 1.0, "1 or 3", row.columns)
        for row in rows
    ]
    for row, scale in zip(rows, found):
        good = scale == found[0] and scale in (0, 1, 3)
        called = _called(SCALE, row.columns)
        require(good, f"{row.place}: {called} is {scale:g}", "1 in every row, 3 in every row, or left out")
    return found[0]


def nearest(column: str, columns: Iterable[str]) -> str | None:
    """Return the column whose name is similar, or usual for the same content; None if there is none."""
    names = {name.lower(): name for name in columns}
    similar = difflib.get_close_matches(column.lower(), names, 1)
    found = [*similar, *(name for name in _USUAL.get(column, ()) if name in names)]
    return names[found[0]] if found else None


def closest(column: str, columns: Iterable[str]) -> str:
    """Return `` (the closest is 'lable')``, or ``""`` if no column has a similar name."""
    name = nearest(column, columns)
    return "" if name is None else f" (the closest is {name!r})"


def _called(column: str, columns: Mapping[str, str]) -> str:
    """Return ``column 'emotion' (label)`` for a label that the table has under another name."""
    name = columns.get(column, column)
    return f"column {name!r}{'' if name == column else f' ({column})'}"


def text(row: dict[str, Any], column: str, place: str, columns: Mapping[str, str] = _OURS) -> str:
    """Return the text of a cell; ``columns`` has the table's names of columns, for messages.

    Raises:
        ValueError: it is missing, empty, not a text or a whole number, or longer than the name of a file.
    """
    value = row.get(column)
    # JSON speakers and labels are often numbers.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    found = f"missing{closest(columns.get(column, column), row)}" if value is None else quoted(value)
    found = f"{place}: {_called(column, columns)} is {found}"
    good = isinstance(value, str) and value.strip() != ""
    require(good, found, "a text that is not empty")
    possible = len(value) <= _LONGEST and "\0" not in value and _encodes(value)
    require(possible, found, f"at most {_LONGEST} characters that a file name can have")
    return value.strip()


def _encodes(value: str) -> bool:
    """Return whether a text can be a file name; JSON may hold surrogates that no name has."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _part(row: dict[str, Any], column: str, place: str, columns: Mapping[str, str]) -> str | None:
    if empty(row.get(column)):
        return None
    name = text(row, column, place, columns)
    part = part_of(name)
    require(part is not None, f"{place}: {_called(column, columns)} is {quoted(name)}", f"one of {PART_NAMES}")
    return part


def optional_seconds(
    row: dict[str, Any], column: str, place: str, columns: Mapping[str, str] = _OURS
) -> float | None:
    """Return a number of seconds, None for an empty cell; ``columns`` as in :func:`text`.

    Raises:
        ValueError: it is not a number of 0 or more.
    """
    if empty(row.get(column)):
        return None
    return _number(row, column, place, 0.0, "a number of seconds >= 0", columns)


def empty(value: Any) -> bool:
    """Return whether a cell is empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def _number(
    row: dict[str, Any], column: str, place: str, least: float, wanted: str, columns: Mapping[str, str]
) -> float:
    value = row.get(column)
    number = _read(value)
    found = "missing" if value is None else quoted(value)
    require(math.isfinite(number) and number >= least, f"{place}: {_called(column, columns)} is {found}", wanted)
    return number


def _read(value: Any) -> float:
    """Return the number in a cell, NaN if it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan

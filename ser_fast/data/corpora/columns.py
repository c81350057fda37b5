"""The columns of a table of utterances under the names that its owner gave them."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.rows import OPTIONAL, SCALE, SPEAKER, SPLIT, TARGETS, closest, nearest
from ser_fast.data.corpora.trees import quoted

FILE = "file"
NAMES = (FILE, SPEAKER, *TARGETS, *OPTIONAL, SCALE)


def parse_columns(given: str | Mapping[str, str]) -> dict[str, str]:
    """Return the column of the table for each of our names; ``split`` is another name of ``part``.

    Args:
        given: ``NAME=COLUMN``, separated by commas, or a map.

    Raises:
        ValueError: an entry has another form, or a name is unknown or there twice.

    Example:
        >>> parse_columns("file=path, label=emotion, split=set")
        {'file': 'path', 'label': 'emotion', 'part': 'set'}
    """
    form = "like file=path,label=emotion"
    if isinstance(given, str):
        pairs = [entry.partition("=") for entry in given.split(",") if entry.strip()]
        require(all(mark for _, mark, _ in pairs), f"columns is {given!r}", form)
        pairs = [(name.strip(), column.strip()) for name, _, column in pairs]
    else:
        pairs = list(given.items())
    found = {}
    for name, column in pairs:
        good = isinstance(column, str) and column.strip()
        require(good, f"columns has {column!r} for {name!r}", f"the name of a column, {form}")
        known = f"one of {', '.join(NAMES)}, split, then = and the name in the table"
        require(name in (*NAMES, SPLIT), f"columns names {name!r}{closest(str(name), NAMES)}", known)
        name = "part" if name == SPLIT else name
        require(name not in found, f"columns names {name!r} twice", "there once")
        found[name] = column
    return found


def check_columns(columns: Mapping[str, str], there: Iterable[str], table: str) -> None:
    """Refuse a column that the table lacks.

    Raises:
        ValueError: names the column, the closest one and all that there are.
    """
    there = [name for name in there if name]
    for name, column in columns.items():
        found = f"{table}: columns names {column!r} for {name!r}, which is no column{closest(column, there)}"
        require(column in there, found, f"one of {', '.join(there)}")


def renamed(cells: Mapping[str, Any], columns: Mapping[str, str], targets: Collection[str] = ()) -> dict[str, Any]:
    """Return a row with our names beside those of the table.

    A ``label`` or ``value`` that ``columns`` chooses leaves out the other one, unless that is among the ``targets``.
    """
    hidden = {*columns, *(TARGETS if set(TARGETS) & columns.keys() else ()), *((SPLIT,) if "part" in columns else ())}
    hidden -= set(targets) - columns.keys()
    kept = {name: cell for name, cell in cells.items() if name not in hidden}
    return kept | {name: cells[column] for name, column in columns.items() if column in cells}


def check_header(header: list[str], columns: dict[str, str], targets: Iterable[str], place: str) -> None:
    """Refuse a header row that lacks a column that every table has, or has one of ours twice.

    Raises:
        ValueError: names the column, and the closest one if it is missing.
    """
    # Targets that are missing are refused with those that are there.
    target = "value" if "value" in {*header, *columns} and "label" not in columns else "label"
    required = (FILE, SPEAKER, *([] if targets else [target]))
    for name in dict.fromkeys((*NAMES, SPLIT, *targets)):
        column = columns.get(name, name)
        count = header.count(column)
        found = f"{place}: column {column!r} occurs {count} times in {quoted(header)}"
        if count == 0 and name in required:
            # The option replaces an earlier one.
            whole = columns | {name: nearest(column, header) or "COLUMN"}
            option = shlex.quote(",".join(map("=".join, whole.items())))
            fix = f"or named by --columns={option}"
            raise ValueError(f"{found}{closest(column, header)}; it must be there once, {fix}")
        require(count < 2, found, "there once")

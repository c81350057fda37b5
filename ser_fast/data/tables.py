"""CSV tables whose cells a spreadsheet shows and does not compute."""

import csv
import io
import re
from collections.abc import Iterable

from ser_fast.data.files import printable

# Signs with which a spreadsheet begins a formula, also full-width, after any number of our own quotes.
# Source: OWASP, "CSV injection". Of its further characters, tabulator and line ends, printable() makes escapes.
_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20]")


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as comma-separated values; None is an empty cell.

    A cell that a spreadsheet would compute gets a leading ``'``, which :func:`from_cell` removes; numbers
    and intervals of numbers stay. Control characters become escapes.

    Example:
        >>> print(to_csv([["name", "value"], ["=1+1", -0.5]]), end="")
        name,value
        '=1+1,-0.5
    """
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(map(_to_cell, row) for row in rows)
    return table.getvalue()


def from_cell(cell: str) -> str:
    """Return the text of a cell that :func:`to_csv` wrote, control characters as escapes."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _to_cell(value: object) -> str:
    text = "" if value is None else printable(value)
    numbers = all(map(_is_number, re.split(" to | ± ", text)))
    return f"'{text}" if _FORMULA.match(text) and not numbers else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

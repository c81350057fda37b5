"""Tables of separated values with a header row, in the forms that spreadsheets write."""

import csv
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

from ser_fast._require import require
from ser_fast.data.tables import from_cell

SEPARATORS = ",;\t"
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16
_ALLOWED = "UTF-8, or UTF-16 with a byte order mark"
_DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)  # a first line that Excel writes and reads
_DECIMAL_COMMA = re.compile(r"\s*([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)\s*")


class Table(NamedTuple):
    """A table of separated values.

    Attributes:
        header: names of the columns.
        place: that of the header row, for messages.
        mark: the separator.
        rows: place and cells of each row that is not empty, read as they are taken.
    """

    header: list[str]
    place: str
    mark: str
    rows: Iterator[tuple[str, list[str]]]

    def named(self) -> Iterator[tuple[str, dict[str, str | None]]]:
        """Yield the place and the cells of each row by name; a cell that a short row lacks is None.

        Raises:
            ValueError: a row has more cells than the header; the message names the line.
        """
        return ((place, _named(self.header, cells, place)) for place, cells in self.rows)


def encoding(path: str | os.PathLike[str]) -> str:
    """Return the encoding that the byte order mark of a table names, UTF-8 without one."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in _WIDE else "utf-8-sig"


def decoded(path: Path) -> str:
    """Return the text of a table in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another encoding; the message names line and byte.
    """
    content = path.read_bytes()
    try:
        text = content.decode(encoding(path)).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"{path}, line {line}: byte 0x{content[min(error.start, len(content) - 1)]:02x}"
        raise ValueError(f"{found}; it must be {_ALLOWED}") from error
    _refuse_zero(text.partition("\n")[0], f"{path}, line 1")
    return text


def separator(header: str, wanted: Collection[str] = ()) -> str:
    """Return which of ``SEPARATORS`` gives a header row the most wanted names, then the most cells.

    Args:
        header: first line of a table.
        wanted: names of columns that the table probably has.

    Example:
        >>> separator('file;"speaker, age";label')
        ';'
    """

    def quality(mark: str) -> tuple[int, int]:
        names = next(_reader([header], mark, strict=False), [])
        return len(set(map(str.strip, names)) & set(wanted)), len(names)

    return max(SEPARATORS, key=quality)


def read_table(file: TextIO, name: str, wanted: Collection[str] = ()) -> Table:
    """Return a table with a header row.

    The separator is that of the header row, or the one that a line ``sep=;`` above it declares. Cells may be quoted;
    in a table of tabs whose quotes do not parse they are part of the cells. Blank lines, empty columns at the end and
    rows of empty cells, which spreadsheets add, are left out.

    Args:
        file: the table, which can be read again from its start; opened with ``newline=""``.
        name: its name, for messages.
        wanted: names of columns that the table probably has, to find the separator.

    Raises:
        ValueError: it is UTF-16 without a byte order mark, or a row is malformed; the message names the line.
    """
    declared, above, first = "", 0, ""
    for line in file:
        found = _DECLARED.fullmatch(line)
        if not found and any(map(str.isalnum, line)):
            first = line
            break
        declared, above = found[1] if found else declared, above + 1
    _refuse_zero(first, f"{name}, line {above + 1}")
    mark = declared or separator(first, wanted)

    def reader(quoting: int):
        file.seek(0)
        lines = (line if number >= above else "\n" for number, line in enumerate(file))
        return _reader(lines, mark, quoting)

    quoting = _quoting(reader(csv.QUOTE_MINIMAL)) if mark == "\t" else csv.QUOTE_MINIMAL
    rows = _rows(reader(quoting), name, mark)
    place, cells = next(rows, (f"{name}, line 1", []))
    header = [cell.strip() for cell in cells]
    while header and not header[-1]:
        header.pop()
    return Table(header, place, mark, rows)


def with_decimal_points(row: Mapping[str, str | None], names: Collection[str]) -> dict[str, str | None]:
    """Return a row with decimal points in the numbers of some columns, for ``0,5`` of a table with semicolons.

    Example:
        >>> with_decimal_points({"start": "0,5", "label": "0,5"}, ["start", "end"])
        {'start': '0.5', 'label': '0,5'}
    """
    numbers = {name: _DECIMAL_COMMA.fullmatch(row.get(name) or "") for name in names}
    return {**row, **{name: f"{found[1]}.{found[2]}" for name, found in numbers.items() if found}}


def _refuse_zero(text: str, place: str) -> None:
    """Refuse the zero bytes that UTF-16 has when it is read as UTF-8."""
    require("\0" not in text, f"{place}: byte 0x00", _ALLOWED)


def _reader(lines: Iterable[str], mark: str, quoting: int = csv.QUOTE_MINIMAL, strict: bool = True):
    return csv.reader(lines, strict=strict, skipinitialspace=True, delimiter=mark, quoting=quoting)


def _quoting(rows: Iterable[list[str]]) -> int:
    """Return whether quotes delimit cells in a table of tabs; in Common Voice's, for one, they are text."""
    try:
        # A stray quote makes one cell of all up to the next one.
        stray = any("\t" in cell and not {"\r", "\n"}.isdisjoint(cell) for cells in rows for cell in cells)
    except csv.Error:
        stray = True
    return csv.QUOTE_NONE if stray else csv.QUOTE_MINIMAL


def _rows(reader, name: str, mark: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each row that is not empty."""
    good = 0  # lines; after an open quote the reader is at the last one
    try:
        for cells in reader:
            good = reader.line_num
            if any(cell.strip() for cell in cells):
                yield f"{name}, line {good}", cells
    except csv.Error as error:
        raise ValueError(f"{name}, line {good + 1}: {error}; it must be values separated by {mark!r}") from error


def _named(header: list[str], cells: list[str], place: str) -> dict[str, str | None]:
    while len(cells) > len(header) and not cells[-1].strip():
        cells.pop()
    # An unquoted separator adds a cell.
    require(
        len(cells) <= len(header), f"{place}: the number of cells is {len(cells)}", f"{len(header)}, as in the header"
    )
    row = dict.fromkeys(header)
    return row | {column: from_cell(cell) for column, cell in zip(header, cells)}

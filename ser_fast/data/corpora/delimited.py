"""Tables of separated values with a header row, in the forms that spreadsheets write."""

import csv
import io
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.tables import from_cell

SEPARATORS = ",;\t"
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of UTF-16


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
        return content.decode(encoding(path)).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"{path}, line {line}: byte 0x{content[min(error.start, len(content) - 1)]:02x}"
        raise ValueError(f"{found}; it must be UTF-8, or UTF-16 with a byte order mark") from error


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
        names = next(_reader(header, mark, strict=False), [])
        return len(set(map(str.strip, names)) & set(wanted)), len(names)

    return max(SEPARATORS, key=quality)


def separated_rows(
    text: str, name: str, wanted: Collection[str] = ()
) -> tuple[list[str], Iterator[tuple[str, dict[str, str | None]]]]:
    """Return the names of the columns, and an iterator of the place, for messages, and the cells of each row.

    The separator is that of the header row. Cells may be quoted. Blank lines, empty columns at the end and rows of
    empty cells, which spreadsheets add, are left out. A cell that a short row lacks is None.

    Args:
        text: the table.
        name: its name, for messages.
        wanted: names of columns that the table probably has, to find the separator.

    Raises:
        ValueError: a row is malformed, or has more cells than the header; the message names the line.
    """
    mark = separator(re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0], wanted)
    rows = _rows(_reader(text, mark), name, mark)
    header = [cell.strip() for cell in next(rows, ("", []))[1]]
    while header and not header[-1]:
        header.pop()
    return header, ((place, _named(header, cells, place)) for place, cells in rows)


def _reader(text: str, mark: str, strict: bool = True):
    return csv.reader(io.StringIO(text, newline=""), strict=strict, skipinitialspace=True, delimiter=mark)


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

"""Names of the audio to predict, listed one by one: files, folders, lists, manifests and standard input."""

import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TextIO

from ser_fast._require import require
from ser_fast.data.corpora.delimited import encoding, read_table, with_decimal_points
from ser_fast.data.corpora.rows import closest
from ser_fast.data.extras import import_extra
from ser_fast.data.files import AUDIO_SUFFIXES, Found, passed_over, printable, walk
from ser_fast.data.tables import from_cell

STDIN = "-"
TABLES = (".csv", ".tsv")
LISTS = (".txt", *TABLES, ".jsonl", ".parquet")
_SPAN = ("start", "end")
_ROWS_AT_ONCE = 4096  # of a .parquet


class Item(NamedTuple):
    """Audio to predict.

    Attributes:
        file: name of the file.
        start: in seconds; None is the beginning.
        end: in seconds; None is the end.
        error: why there is nothing to read, or ``""``.
    """

    file: str
    start: float | None = None
    end: float | None = None
    error: str = ""


def listing(
    names: Iterable[str | os.PathLike[str]],
    report: Callable[[str], None] = lambda line: None,
    stdin: Iterable[str | bytes] | None = None,
) -> Iterator[Item]:
    """Yield the audio of names in a fixed order, without holding more of it than one folder's names.

    A name that cannot be used gives an item with an error; none ends the listing.

    Args:
        names: audio files; folders, whose audio files are taken as :func:`ser_fast.data.files.walk` yields them;
            lists, see :func:`of_list`; "-" for the lines of ``stdin``.
        report: called with a sentence about the files of a folder that are passed over.
        stdin: the lines for "-"; standard input by default.

    Raises:
        ValueError: a list has no column of names; see :func:`check`.
    """
    for name in names:
        name = os.fspath(name)
        if name == STDIN:
            # As bytes, where there are some: a name need not be UTF-8.
            lines = getattr(sys.stdin, "buffer", sys.stdin) if stdin is None else stdin
            yield from (Item(line) for line in map(_line, map(os.fsdecode, lines or ())) if line)
        elif is_list(name):
            yield from of_list(name)
        elif os.path.isdir(name):
            yield from _of_folder(name, report)
        elif os.path.exists(name):
            yield Item(name)
        else:
            yield Item(name, error="no such file or folder")


def is_list(name: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of an existing list of names, by its suffix."""
    return os.fspath(name).lower().endswith(LISTS) and os.path.isfile(name)


def of_list(name: str) -> Iterator[Item]:
    """Yield the items of a list of names.

    A ``.txt`` has one name a line. A ``.csv`` or ``.tsv`` with a header row, separated as in a manifest, a ``.jsonl``
    and a ``.parquet`` have a column ``file``, or ``path``, and may have ``start`` and ``end`` in seconds. Names are
    relative to the folder of the list. A row that cannot be used gives an item with an error.

    Raises:
        ValueError: there is no column of names.
    """
    folder = os.path.dirname(name)
    for place, row in _rows(name):
        if isinstance(row, str):
            yield Item(place, error=row)
            continue
        file = row["file"] if "file" in row else row.get("path")
        if not isinstance(file, str) or not file.strip() or "\0" in file:
            yield Item(place, error=f"column 'file' is {file!r:.80}; it must be a name")
            continue
        start, end = (_seconds(row.get(column)) for column in _SPAN)
        error = next((f"{one} is {row[one]!r:.80}; it must be a number of seconds >= 0"
                      for one, value in zip(_SPAN, (start, end)) if value == -1), "")  # fmt: skip
        yield Item(os.path.join(folder, file), *((None, None) if error else (start, end)), error)


def check(names: Iterable[str]) -> bool:
    """Check every list among the names: the columns, and that all rows of a table can be told apart.

    Returns:
        Whether a list has ``start`` or ``end``.

    Raises:
        ValueError: a list has no column of names, or is not readable as a table.
    """
    # A list, not a generator: every list is checked.
    return any([not set(_SPAN).isdisjoint(_columns(name)) for name in names if is_list(name)])


def _columns(name: str) -> Iterable[str]:
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".parquet":
        return _parquet(name).schema_arrow.names
    rows = (row for _, row in _rows(name) if isinstance(row, dict))
    # Each object of a .jsonl has its own keys, and an open quote of a table takes all rows up to its end.
    return set(itertools.chain.from_iterable(itertools.islice(rows, 1) if suffix == ".txt" else rows))


def _of_folder(name: str, report: Callable[[str], None]) -> Iterator[Item]:
    found, count = Found([]), 0
    for file in walk(name, found):
        count += 1
        yield Item(file)
    sentence = passed_over(found, count)
    if count and sentence:
        report(f"{printable(name)}: {sentence}")
    elif not count:
        wanted = f"it must be a folder with files of {', '.join(AUDIO_SUFFIXES)}"
        yield Item(name, error=f"no audio file in this folder; {wanted}{sentence and '; '}{sentence}")


def _rows(name: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield the place of each row of a list and the row, or why it cannot be used."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".parquet":
        yield from _parquet_rows(name)
        return
    table = suffix in TABLES
    # Names that are not UTF-8 stay what they are, as in a listing of their folder.
    with open(name, encoding=encoding(name), errors="surrogateescape", newline="" if table else None) as file:
        if table:
            yield from _table_rows(name, file)
            return
        for number, line in enumerate(file, 1):
            place = f"{name}, line {number}"
            if not (line := _line(line)):
                continue
            if suffix == ".txt":
                yield place, {"file": line}
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield place, row if isinstance(row, dict) else "not a JSON object"


def _table_rows(name: str, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    table = read_table(file, name, ("file", "path", *_SPAN))
    found = f"{name} has the columns {', '.join(table.header)[:200] or 'none'}{closest('file', table.header)}"
    require(not {"file", "path"}.isdisjoint(table.header), found, "a table with 'file' or 'path'")
    for place, cells in table.rows:
        named = itertools.zip_longest(table.header, cells[: len(table.header)], fillvalue="")
        row = {column: from_cell(cell) or None for column, cell in named if column}
        yield place, with_decimal_points(row, _SPAN if table.mark == ";" else ())


def _parquet(name: str):
    pyarrow = import_extra("pyarrow", "a .parquet", "scale")
    parquet = import_extra("pyarrow.parquet", "a .parquet", "scale")
    try:
        table = parquet.ParquetFile(name)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name}: not readable as Parquet ({str(error).splitlines()[0]})") from error
    names = table.schema_arrow.names
    found = f"{name} has the columns {', '.join(names)[:200] or 'none'}"
    require(not {"file", "path"}.isdisjoint(names), found, "a table with 'file' or 'path'")
    return table


def _parquet_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    table = _parquet(name)
    key = "file" if "file" in table.schema_arrow.names else "path"
    wanted = [key, *(column for column in _SPAN if column in table.schema_arrow.names)]
    number = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
        for row in batch.to_pylist():
            number += 1
            yield f"{name}, row {number}", row


def _line(line: str) -> str:
    """Return a line without its end; a name may begin or end with spaces."""
    return line.rstrip("\r\n")


def _seconds(value: Any) -> float | None:
    """Return a number of seconds, None for an empty cell, -1 for anything else."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return -1
    return number if 0 <= number < math.inf else -1

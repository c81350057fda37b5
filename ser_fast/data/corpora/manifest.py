"""A corpus listed in a CSV or JSONL table."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.rows import OPTIONAL, SCALE, SPEAKER, TARGETS, Row, closest, text, to_corpus
from ser_fast.data.corpora.trees import quoted
from ser_fast.data.files import printable, write_atomically
from ser_fast.data.tables import from_cell, to_csv
from ser_fast.data.utterance import VALUE, Corpus, check_targets

SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("file", SPEAKER)


def manifest(path: str | PathLike[str], targets: Sequence[str] = ()) -> Corpus:
    """Return the utterances listed in a table with the columns ``file,speaker,label[,start,end,part,group]``.

    ``file`` may be relative to the folder of the table. ``start`` and ``end`` are seconds; empty or null is the
    beginning or the end of the file. ``part`` is ``train``, ``valid`` or ``test``, for all utterances or none;
    ``group`` is the name of what is held out together, such as a recording session, for all or none. For a
    regression the column ``value``, a finite number, replaces ``label``. A column ``sentiment_scale``, 1 or 3 in all
    rows, declares values from -1 to 1 or from -3 to 3 as sentiment, for which Acc-2, F1 and the like are measured.
    The classes are sorted; those that differ in case only are merged. Other columns and blank lines are ignored.
    With ``targets`` the columns of these names, finite numbers such as arousal and valence, replace ``label`` and
    ``value``, which may be there or not.

    Args:
        path: a ``.csv`` with a header row, or a ``.jsonl`` with one object a line; UTF-8.
        targets: names of the columns to predict, in this order.

    Raises:
        OSError: the table cannot be read.
        ValueError: the table is malformed; the message names the line, the column, the value and the constraint.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found = f"manifest {str(path)!r} has the suffix {suffix!r}"
    require(suffix in SUFFIXES, found, f"one of {', '.join(SUFFIXES)}")
    read_rows = _csv_rows(_decoded(path), str(path), targets) if suffix == ".csv" else read_jsonl(path)
    rows = list(read_rows)
    require(bool(rows), f"manifest {str(path)!r} lists 0 utterances", "a table of at least one")
    listed = [(place, cells, text(cells, "file", place)) for place, cells in rows]
    return to_corpus(path.stem, str(path), [Row(*row, path.parent / row[-1]) for row in listed], targets)


def write_manifest(corpus: Corpus, out: Path) -> None:
    """Write a corpus as a ``.csv`` that :func:`manifest` reads; files below its folder get a relative path.

    The ``values`` of the utterances are columns after the label; a cell is empty where an utterance lacks one.

    Raises:
        ValueError: an utterance is not a file, or its name cannot be written.
    """
    target = ["label"] if corpus.classes else ["value"] if corpus.targets == [VALUE] else []
    columns = [*REQUIRED, *target, *(name for name in OPTIONAL if any(getattr(u, name) is not None
                                                                      for u in corpus.utterances))]  # fmt: skip
    values = list(dict.fromkeys(name for utterance in corpus.utterances for name in utterance.values))
    check_targets(values)
    folder = Path(os.path.abspath(out)).parent
    scale = {SCALE: f"{corpus.sentiment_scale:g}"} if corpus.sentiment_scale else {}
    rows = [[*columns, *values, *scale]]
    for utterance in corpus.utterances:
        found = f"corpus {corpus.name!r}: the audio of {utterance.name} is inside another file or in memory"
        require(utterance.path is not None, found, "a file of its own, for a manifest lists files")
        file = Path(os.path.abspath(utterance.path))
        file = file.relative_to(folder) if file.is_relative_to(folder) else file
        named = printable(file)
        require(named == str(file), f"file is {named}", "a name in UTF-8 without control characters; rename it")
        cells = [*(getattr(utterance, name) for name in columns[1:]), *map(utterance.values.get, values)]
        rows.append([file.as_posix(), *cells, *scale.values()])
    write_atomically(out, to_csv(rows).encode())


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place, for messages, and the object of each line of a table in JSONL.

    Raises:
        OSError: the table cannot be read.
        ValueError: it is not UTF-8, or a line is no JSON object; the message names the line.
    """
    yield from _jsonl_rows(_decoded(path), str(path))


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte 0x{content[error.start]:02x}; it must be UTF-8") from error


def _csv_rows(text: str, name: str, targets: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        header = [column.strip() for column in reader.fieldnames or []]
        # Targets that are missing are refused with those that are there.
        required = (*REQUIRED, *([] if targets else ["value" if "value" in header else "label"]))
        _refuse_separators(header, required, name)
        for column in dict.fromkeys((*REQUIRED, *TARGETS, *OPTIONAL, SCALE, *targets)):
            count = header.count(column)
            good = count == 1 or (count == 0 and column not in required)
            found = f"{name}, line 1: column {column!r} occurs {count} times in {quoted(header)}"
            require(good, found + (closest(column, header) if count == 0 else ""), "there once")
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
    others = "".join(f", and column {column!r} is missing{closest(column, columns)}" for column in missing)
    raise ValueError(f"{name}, line 1: columns are separated by {separator!r}{others}; it must be ','")


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

"""A corpus listed in a table: CSV, TSV or JSONL."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.columns import FILE, NAMES, check_columns, check_header, parse_columns, renamed
from ser_fast.data.corpora.delimited import decoded, read_table, with_decimal_points
from ser_fast.data.corpora.rows import OPTIONAL, SCALE, SPEAKER, Row, text, to_corpus
from ser_fast.data.corpora.trees import quoted
from ser_fast.data.files import printable, write_atomically
from ser_fast.data.tables import to_csv
from ser_fast.data.utterance import VALUE, Corpus, check_targets

SUFFIXES = (".csv", ".tsv", ".jsonl")
_NUMBERS = ("start", "end", VALUE, SCALE)


def manifest(path: str | PathLike[str], targets: Sequence[str] = (), columns: str | Mapping[str, str] = "") -> Corpus:
    """Return the utterances listed in a table with the columns ``file,speaker,label[,start,end,part,group]``.

    ``file`` may be relative to the folder of the table. ``start`` and ``end`` are seconds; empty or null is the
    beginning or the end of the file. ``part`` is ``train``, ``valid`` or ``test``, for all utterances or none;
    ``training``, ``dev``, ``val``, ``validation``, ``testing`` and ``eval`` are understood too, and the column may be
    called ``split``. ``group`` is the name of what is held out together, such as a recording session, for all or
    none. For a regression the column ``value``, a finite number, replaces ``label``. A column ``sentiment_scale``, 1
    or 3 in all rows, declares values from -1 to 1 or from -3 to 3 as sentiment, for which Acc-2, F1 and the like are
    measured. The classes are sorted; those that differ in case only are merged. Other columns and blank lines are
    ignored. With ``targets`` the columns of these names, finite numbers such as arousal and valence, replace
    ``label`` and ``value``, which may be there or not.

    Args:
        path: a ``.csv`` or ``.tsv`` with a header row, separated by commas, semicolons or tabs, or a ``.jsonl`` with
            one object a line; in UTF-8, or in UTF-16 with a byte order mark. Between semicolons ``0,5`` is a number.
        targets: names of the columns to predict, in this order.
        columns: the table's columns for the names above, as ``file=path,label=emotion`` or a map.

    Raises:
        OSError: the table cannot be read.
        ValueError: the table is malformed; the message names the line, the column, the value and the constraint.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found = f"manifest {str(path)!r} has the suffix {suffix!r}"
    require(suffix in SUFFIXES, found, f"one of {', '.join(SUFFIXES)}")
    columns = parse_columns(columns)
    if suffix == ".jsonl":
        rows = list(read_jsonl(path))
        header = list(dict.fromkeys(name for _, cells in rows for name in cells))
        check_columns(columns, header, str(path))
        numbers = ()
    else:
        file = io.StringIO(decoded(path), newline="")
        table = read_table(file, str(path), {*NAMES, *columns.values(), *targets})
        check_columns(columns, table.header, table.place)
        check_header(table.header, columns, targets, table.place)
        rows, numbers = table.named(), {*_NUMBERS, *targets} if table.mark == ";" else ()
    rows = [(place, with_decimal_points(renamed(cells, columns, targets), numbers)) for place, cells in rows]
    require(bool(rows), f"manifest {str(path)!r} lists 0 utterances", "a table of at least one")
    listed = [(place, cells, text(cells, FILE, place, columns)) for place, cells in rows]
    listed = [Row(*row, path.parent / row[-1], columns=columns) for row in listed]
    return to_corpus(path.stem, str(path), listed, targets)


def write_manifest(corpus: Corpus, out: Path) -> None:
    """Write a corpus as a ``.csv`` that :func:`manifest` reads; files below its folder get a relative path.

    The ``values`` of the utterances are columns after the label; a cell is empty where an utterance lacks one.

    Raises:
        ValueError: an utterance is not a file, or its name cannot be written.
    """
    target = ["label"] if corpus.classes else ["value"] if corpus.targets == [VALUE] else []
    columns = [FILE, SPEAKER, *target, *(name for name in OPTIONAL if any(getattr(u, name) is not None
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
    yield from _jsonl_rows(decoded(path), str(path))


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

"""Files of rows: Parquet, JSON lines and CSV, written row by row and joined part by part."""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ser_fast.data.extras import import_extra
from ser_fast.data.tables import from_cell, to_csv
from ser_fast.prediction.rows import Columns

_ROWS_AT_ONCE = 1024


class Writer:
    """Writes rows to a file.

    Args:
        path: the file.
        suffix: ".parquet", ".jsonl" or ".csv".
        columns: its columns.
    """

    def __init__(self, path: Path, suffix: str, columns: Columns):
        self._rows: list[dict[str, Any]] = []
        self._sink = _SINKS[suffix](path, columns)

    def write(self, row: dict[str, Any]) -> None:
        """Write a row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._flush()
        self._sink.close()

    def _flush(self) -> None:
        if self._rows:
            self._sink.write(self._rows)
        self._rows = []

    def abandon(self) -> None:
        """Close the file of an interrupted run, which is not whole."""
        self._sink.close()


class _Lines:
    """A file of text lines."""

    def __init__(self, path: Path, columns: Columns):
        self.file = open(path, "wb")  # noqa: SIM115, closed by close()

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.file.write(self.text(rows).encode())

    def text(self, rows: list[dict[str, Any]]) -> str:
        return "".join(f"{to_json(row)}\n" for row in rows)

    def append(self, part: Path) -> None:
        with open(part, "rb") as source:
            shutil.copyfileobj(source, self.file, 1 << 20)

    def close(self) -> None:
        self.file.close()


class _Csv(_Lines):
    def text(self, rows: list[dict[str, Any]]) -> str:
        return to_csv(row.values() for row in rows)


class _Parquet:
    def __init__(self, path: Path, columns: Columns):
        self.arrow = import_extra("pyarrow", "a .parquet", "scale")
        self.parquet = import_extra("pyarrow.parquet", "a .parquet", "scale")
        self.schema = columns.schema()
        self.file = self.parquet.ParquetWriter(path, self.schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.file.write_table(self.arrow.Table.from_pylist(rows, self.schema))

    def append(self, part: Path) -> None:
        with self.parquet.ParquetFile(part) as source:
            for group in range(source.num_row_groups):
                self.file.write_table(source.read_row_group(group))

    def close(self) -> None:
        self.file.close()


_SINKS = {".jsonl": _Lines, ".csv": _Csv, ".parquet": _Parquet}


def join(parts: Iterable[Path], out: Path, suffix: str, columns: Columns) -> None:
    """Write the rows of all parts, one after the other, to a file; see :class:`Writer` for the arguments."""
    sink = _SINKS[suffix](out, columns)
    try:
        if isinstance(sink, _Csv):
            sink.file.write(to_csv([columns.names]).encode())
        for part in parts:
            sink.append(part)
    finally:
        sink.close()


def names(part: Path) -> Iterator[str]:
    """Yield the names of the files of a part's rows."""
    suffix = part.suffix.lower()
    if suffix == ".parquet":
        parquet = import_extra("pyarrow.parquet", "a .parquet", "scale")
        yield from parquet.read_table(part, columns=["file"])["file"].to_pylist()
        return
    with open(part, encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            yield from (from_cell(row[0]) for row in csv.reader(file))
        else:
            yield from (json.loads(line)["file"] for line in file)


def to_json(row: dict[str, Any]) -> str:
    """Return a row as one line of JSON."""
    return json.dumps(row, default=lambda value: value.tolist() if isinstance(value, np.ndarray) else str(value))

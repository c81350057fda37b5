"""A database of audformat, as ``audb.load_to`` and ``audformat.Database.save`` write it."""

import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ser_fast._require import require
from ser_fast.data.corpora.columns import FILE, check_columns, parse_columns
from ser_fast.data.corpora.labels import is_emotion, mostly, part_of
from ser_fast.data.corpora.rows import SPEAKER, Row, to_corpus
from ser_fast.data.corpora.trees import require_folder
from ser_fast.data.extras import import_extra
from ser_fast.data.utterance import UNKNOWN, VALUE, Corpus, check_targets, plural

HEADER = "db.yaml"
_WANTED = "the folder of a database, with its db.yaml, as audb.load_to or audformat.Database.save writes it"
_EMOTION = "emotion"
_NAMES = (FILE, SPEAKER, "label", VALUE, "part", "group")  # what --columns may choose here

Key = tuple[str, float, float | None]  # file, start and end in seconds; None is the end of the file


class Place(NamedTuple):
    """A column of a table."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}/{self.column}"

    def fits(self, pattern: str) -> bool:
        """Return whether a pattern is TABLE/COLUMN, with wildcards, or the name of the column."""
        return pattern == self.column or fnmatchcase(str(self), pattern)


class Database:
    """The header of a database, and its tables once they are needed.

    Neither the header nor a table can run code: the library itself would construct any Python object that a tag in
    ``db.yaml`` names, and prefers a pickle of a table to its other files.

    Args:
        root: the folder.

    Raises:
        ImportError: audformat is not installed.
        ValueError: the folder has no header of a database.
    """

    def __init__(self, root: Path):
        self.root = root
        found = f"{str(root)!r} has no {HEADER}"
        require((root / HEADER).is_file(), found, _WANTED)
        with _quiet():
            self.library = import_extra("audformat", "a database of audformat", "audformat")
        self.header = self._read_header()
        tables = self.header.tables
        self.places = [Place(table, column) for table in tables for column in tables[table].columns]
        self._cells: dict[tuple[Place, str], dict[Key, Any]] = {}
        self._loaded: set[str] = set()

    def _read_header(self):
        import yaml

        try:
            read = yaml.safe_load((self.root / HEADER).read_text(encoding="utf-8"))
            return self.library.Database.load_header_from_yaml(read)
        except Exception as error:  # KeyError, TypeError and others for a file of another kind
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{self.root / HEADER} is not the header of a database ({reason}); it must be {_WANTED}"
            ) from error

    def scheme(self, place: Place) -> str | None:
        """Return the name of a column's scheme."""
        return self.header.tables[place.table].columns[place.column].scheme_id

    def labels(self, place: Place) -> dict[Any, Any]:
        """Return the labels of a column's scheme with what the scheme says about each, None for a mere label."""
        name = self.scheme(place)
        found = self.header.schemes[name].labels if name else None
        if isinstance(found, str):  # a table of labels
            table = self.table(found)
            return dict(zip(table.index.tolist(), table.astype(object).to_dict("records") or [None] * len(table)))
        return found if isinstance(found, dict) else dict.fromkeys(found or ())

    def is_numeric(self, place: Place) -> bool:
        """Return whether a column has a scheme of numbers."""
        name = self.scheme(place)
        return bool(name) and self.header.schemes[name].is_numeric and not self.header.schemes[name].labels

    def part(self, table: str) -> str | None:
        """Return "train", "valid" or "test" if that is the split of a table."""
        name = self.header.tables[table].split_id
        return None if name is None else part_of(self.header.splits[name].type) or part_of(name)

    def cells(self, place: Place, field: str) -> dict[Key, Any]:
        """Return the cells of a column that are not empty, by the names, or the ``field``, in its scheme."""
        if (place, field) not in self._cells:
            # Whole numbers beside empty cells are read as floats.
            column = self.table(place.table)[place.column].convert_dtypes()
            names = {label: _name(label, about, field) for label, about in self.labels(place).items()}
            rows = zip(self.keys(place.table), column.astype(object).tolist(), column.isna().tolist())
            self._cells[place, field] = {key: names.get(value, value) for key, value, empty in rows if not empty}
        return self._cells[place, field]

    def keys(self, table: str) -> Iterator[Key]:
        """Yield file, start and end of each row of a table; a start that is not given is 0.

        Raises:
            ValueError: a row names no file.
        """
        with _quiet():
            index = self.library.utils.to_segmented_index(self.table(table).index)
        starts, ends = (index.get_level_values(level).total_seconds().tolist() for level in ("start", "end"))
        for row, (file, start, end) in enumerate(zip(index.get_level_values("file").tolist(), starts, ends), 1):
            good = isinstance(file, str) and bool(file.strip())
            require(good, f"{self.root}, {table}, row {row}: file is {file!r}", "the name of a file")
            yield file, 0.0 if math.isnan(start) else start, None if math.isnan(end) else end

    def table(self, name: str):
        """Return the data frame of a table, read once."""
        if name not in self._loaded:
            # The library checks values by the labels of their schemes, which may be such tables.
            for other in (*self.header.misc_tables, name):
                if other not in self._loaded:
                    self._load(other)
                    self._loaded.add(other)
        return self.header[name].df

    def _load(self, table: str) -> None:
        """Read a table from copies of its files, without the pickle that may lie beside them."""
        files = [self.root / f"db.{table}.{suffix}" for suffix in ("parquet", "csv")]
        files = [file for file in files if file.is_file()]
        found = f"{str(self.root)!r} has no db.{table}.parquet and no db.{table}.csv"
        require(bool(files), found, "a database with both or one, for pickles are not read; Database.save writes it")
        with tempfile.TemporaryDirectory() as folder, _quiet():
            for file in files:
                shutil.copyfile(file, Path(folder) / file.name)
            try:
                self.header[table].load(str(Path(folder) / f"db.{table}"))
            except Exception as error:  # of pyarrow, pandas or audformat
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(f"{files[0]} is not readable as a table ({reason}); it must be one") from error


def audformat(
    root: str | PathLike[str], targets: Sequence[str] = (), columns: str | Mapping[str, str] = ""
) -> Corpus:
    """Return the utterances of a database of audformat; no audio is read.

    The utterances are the rows of a table, whole files or segments of them. Without ``columns`` it is the one table
    with a column ``emotion``, else with a scheme of that name, else with a scheme whose labels are emotions. Several
    are taken together if each has another split, ``train``, ``dev`` or ``test``, which are then the corpus's own
    division. A label has the name that its scheme gives it. The speaker is a column ``speaker``, of this table or of
    another one, such as ``files``, else one with a scheme of that name, else the field ``speaker`` of the labels of a
    scheme; "unknown" where there is none. Rows without a label or target are left out, and a note counts them. Files
    are relative to the folder.

    Args:
        root: the folder with ``db.yaml``. Tables are read from their Parquet or CSV files, never from pickles.
        targets: columns of numbers of one table to predict instead of the label, in this order.
        columns: the columns for ``label``, ``value``, ``speaker``, ``part`` (or ``split``) and ``group``, as
            ``label=TABLE/COLUMN``, or the name of the column alone; and the table of the utterances, ``file=TABLE``.
            With wildcards, such as ``label=emotion.*.gold_standard/emotion``, several tables are taken together.

    Raises:
        FileNotFoundError: the folder does not exist.
        ImportError: audformat is not installed.
        ValueError: it is no database, no column or several columns could be the label, or a column is missing or
            malformed; the message names the columns.
    """
    check_targets(targets)
    columns = parse_columns(columns)
    for name in columns:
        found = f"columns names {name!r}, which a database has beside its files"
        require(name in _NAMES, found, f"one of {', '.join(_NAMES)}, split")
    database = Database(require_folder(root, _WANTED))
    chosen = _chosen(database, targets, columns)
    rows, lost = [], 0
    for table, own in chosen.items():
        cells = {name: database.cells(place, name) for name, place in own.items()}
        shared = {name: [database.cells(place, name) for place in _shared(database, name, table, columns)]
                  for name in (SPEAKER, "part", "group")}  # fmt: skip
        by_file = {name: [_by_file(each) for each in found] for name, found in shared.items()}
        part = database.part(table) if len(chosen) > 1 and "part" not in columns else None
        for key in database.keys(table):
            found = {name: values[key] for name, values in cells.items() if key in values}
            if len(found) < len(cells):
                lost += 1
                continue
            found |= {SPEAKER: UNKNOWN, "part": part}
            for name in shared:
                values = [of[at] for ofs, at in ((shared, key), (by_file, key[0])) for of in ofs[name] if at in of]
                found |= {name: values[0]} if values else {}
            file, start, end = key
            if start or end is not None:
                found |= {"start": start, "end": end}
            called = {name: str(place) for name, place in own.items()}
            rows.append(Row(f"{database.root}, {table}, {file}", found, file, database.root / file, columns=called))
    names = " or ".join(targets) or "label"
    require(bool(rows), f"{', '.join(chosen)} of {str(database.root)!r} has 0 rows with {names}", "at least one")
    corpus = to_corpus(database.header.name, str(database.root), rows, targets)
    note = f"{plural(lost, 'row')} of {', '.join(chosen)} without {names} {'is' if lost == 1 else 'are'} left out"
    return replace(corpus, notes=(*corpus.notes, *([note] if lost else [])))


def _chosen(database: Database, targets: Sequence[str], columns: Mapping[str, str]) -> dict[str, dict[str, Place]]:
    """Return the tables of the utterances, each with the columns of its label or targets."""
    there = list(dict.fromkeys(place.table for place in database.places))
    tables = [table for table in there if fnmatchcase(table, columns.get(FILE, "*"))]
    found = f"columns names {columns.get(FILE)!r} for 'file', which is no table of {str(database.root)!r}"
    require(bool(tables) or not there, found, f"one of {', '.join(there)}")
    places = [place for place in database.places if place.table in tables]
    name = VALUE if VALUE in columns and not targets else "label"
    pattern = columns.get(name, "")
    if targets:
        fits = [{name: Place(table, name) for name in targets} for table in tables]
        fits = [own for own in fits if set(own.values()) <= set(places)]
        numeric = ", ".join(str(place) for place in places if database.is_numeric(place))
        found = f"targets is {', '.join(targets)}, but no table of {str(database.root)!r} has all of them"
        require(bool(fits), found, f"columns of one table; those of numbers are {numeric or 'none'}")
    elif pattern:
        fits = [{name: place} for place in places if place.fits(pattern)]
        if not fits:
            check_columns({name: pattern}, map(str, places), str(database.root))
    else:
        fits = [{name: place} for place in _emotions(database, places)]
        found = f"{str(database.root)!r} has no column of emotions, only {', '.join(map(str, places)) or 'none'}"
        require(bool(fits), found, "a database with one; or name --columns=label=TABLE/COLUMN or --targets=COLUMN")
    _refuse_several(database, fits, columns, targets, name)
    return {next(iter(own.values())).table: own for own in fits}


def _emotions(database: Database, places: list[Place]) -> list[Place]:
    """Return the columns named ``emotion``, else those with such a scheme, else those whose labels are emotions."""

    def described(place: Place) -> bool:
        labels = [str(_name(label, about, "")) for label, about in database.labels(place).items()]
        return mostly(labels, is_emotion)

    for fits in (
        lambda place: place.column == _EMOTION,
        lambda place: database.scheme(place) == _EMOTION,
        described,
    ):
        found = [place for place in places if fits(place)]
        if found:
            return found
    return []


def _refuse_several(
    database: Database,
    fits: list[dict[str, Place]],
    columns: Mapping[str, str],
    targets: Sequence[str],
    name: str,
) -> None:
    """Raise ``ValueError`` if several tables or columns fit that are neither one division nor chosen by wildcards."""
    tables = [next(iter(own.values())).table for own in fits]
    parts = [database.part(table) for table in tables]
    whole = None not in parts and len(set(parts)) == len(parts)
    several = any(mark in columns.get(chosen, "") for chosen in (FILE, name) for mark in "*?[")
    if len(fits) == 1 or (len(set(tables)) == len(tables) and (whole or several)):
        return
    shown = tables if targets else [str(place) for own in fits for place in own.values()]
    kind = f"tables with {', '.join(targets)}" if targets else f"columns that may be the {name}"
    option = f"{FILE if targets else name}={shown[0]}"
    raise ValueError(
        f"{str(database.root)!r} has {len(fits)} {kind}: {', '.join(shown)}; it must be named which one, such as "
        f"--data=audformat:PATH --columns={option}"
    )


def _shared(database: Database, name: str, table: str, columns: Mapping[str, str]) -> list[Place]:
    """Return the columns that tell the speaker, the part or the group, those of the table first."""
    places = sorted(database.places, key=lambda place: place.table != table)
    if name in columns:
        found = [place for place in places if place.fits(columns[name])]
        if not found:
            check_columns({name: columns[name]}, map(str, places), str(database.root))
        return found
    if name != SPEAKER:
        return []
    named = [place for place in places if place.column == SPEAKER]
    named = named or [place for place in places if database.scheme(place) == SPEAKER]
    return named or [
        place
        for place in places
        if any(isinstance(about, dict) and SPEAKER in about for about in database.labels(place).values())
    ]


def _name(label: Any, about: Any, field: str) -> Any:
    """Return the name of a label, or its entry of the name ``field``, in a scheme; the label itself without one."""
    return about if isinstance(about, str) else about.get(field, label) if isinstance(about, dict) else label


def _by_file(cells: dict[Key, Any]) -> dict[str, Any]:
    """Return the value of each file that has the same one in all of its rows."""
    found: dict[str, set] = {}
    for (file, _, _), value in cells.items():
        found.setdefault(file, set()).add(value)
    return {file: next(iter(values)) for file, values in found.items() if len(values) == 1}


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the warnings of pandas about its use by audformat while the context lasts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield

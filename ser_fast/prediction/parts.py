"""The output of a run in parts, each written whole or not at all, kept over interruptions, and joined at the end."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter

from ser_fast.data.files import printable, write_atomically
from ser_fast.prediction import formats
from ser_fast.prediction.listing import Item
from ser_fast.prediction.rows import Columns
from ser_fast.prediction.stream import Found
from ser_fast.prediction.summary import Summary
from ser_fast.training import distributed
from ser_fast.training.run_folder import RunFolder

FILES = 4096  # of a part
_JOINED = "joined"  # marks that the output is whole


class OutputError(RuntimeError):
    """The output cannot be written; the message says what is safe."""


class Parts:
    """The folder ``OUT.parts`` with the finished parts of a run; a context manager.

    Part n, of items ``FILES * n`` on, is ``nnnnnn.SUFFIX`` with its rows and, written after it, ``nnnnnn.json`` with
    a digest of the items' names and the counts of their results.

    Args:
        out: the file that the parts become.
        columns: its columns.
        options: what its content depends on; a run with others does not resume here.

    Raises:
        ValueError: on entering, if ``out`` exists, or the folder holds something else, is of a run with other
            options, or another process is using it.
    """

    def __init__(self, out: Path, columns: Columns, options: dict):
        self.out, self.columns = out, columns
        self.folder = out.with_name(f"{out.name}.parts")
        self._run = RunFolder(self.folder, options, required=("checkpoint",))

    def __enter__(self) -> "Parts":
        if distributed.rank() == 0:
            if self.out.exists() and not self.joined:
                raise ValueError(f"out is {self.out}, which exists; it must be a new file")
            self._run.__enter__()
            self._run.begin()
        return self

    def __exit__(self, *error) -> None:
        if distributed.rank() == 0:
            self._run.__exit__(*error)

    @property
    def joined(self) -> bool:
        """Return whether ``out`` is whole, and the parts that it was made of are still there."""
        return self.out.exists() and (self.folder / _JOINED).exists()

    def done(self, number: int, items: list[Item]) -> bool:
        """Return whether a part is finished.

        Raises:
            ValueError: it is a part of other items.
        """
        marker = self._marker(number)
        if not marker.exists():
            return False
        if json.loads(marker.read_text())["items"] != _digest(items):
            raise ValueError(self._difference(number, items))
        return True

    def write(self, number: int, items: list[Item], results: Iterable[Found], summary: Summary) -> None:
        """Write a part and the counts of its results.

        Args:
            number: its number.
            items: its items.
            results: their results; consumed while ``summary`` counts them.
            summary: counts of this part.

        Raises:
            OutputError: it cannot be written.
        """
        path = self._path(number)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            writer = formats.Writer(temporary, path.suffix, self.columns)
            try:
                for found in results:
                    begin = perf_counter()
                    summary.add(found)
                    writer.write(self.columns.row(found))
                    summary.writing += perf_counter() - begin
                begin = perf_counter()
                writer.close()
            except BaseException:
                with suppress(OSError, ValueError):
                    writer.abandon()
                raise
            _sync(temporary)
            os.replace(temporary, path)
            summary.writing += perf_counter() - begin
            counts = {"items": _digest(items), "summary": summary.as_dict()}
            write_atomically(self._marker(number), json.dumps(counts).encode())
        except OSError as error:
            raise self._unwritten(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def join(self, count: int) -> Summary:
        """Make ``out`` of the parts, remove them, and return the counts of all.

        Raises:
            OutputError: it cannot be written.
            ValueError: there are parts beyond ``count``.
        """
        numbers = self._numbers()
        if numbers and max(numbers) >= count:
            found = f"{self.folder} has parts of more than {count * FILES} files, and the listing has fewer"
            raise ValueError(f"{found}; it must be the same, or the folder deleted")
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise OutputError(f"{self.folder}: part {missing[0]} is missing; the same command resumes")
        # In the folder, where the next run removes what a killed one left.
        temporary = self.folder / f".{self.out.name}.{os.getpid()}.tmp"
        try:
            formats.join(map(self._path, range(count)), temporary, self.out.suffix.lower(), self.columns)
            _sync(temporary)
            write_atomically(self.folder / _JOINED, b"")
            os.replace(temporary, self.out)
        except OSError as error:
            raise self._unwritten(self.out, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return self.remove()

    def remove(self) -> Summary:
        """Remove the parts and return the counts of all."""
        whole = Summary()
        for number in sorted(self._numbers()):
            whole.merge(Summary.from_dict(json.loads(self._marker(number).read_text())["summary"]))
        shutil.rmtree(self.folder)
        return whole

    def _numbers(self) -> set[int]:
        """Return the numbers of the finished parts."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.json") if path.stem.isdecimal()}

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}{self.out.suffix.lower()}"

    def _marker(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _difference(self, number: int, items: list[Item]) -> str:
        before = list(dict.fromkeys(formats.names(self._path(number))))
        now = list(dict.fromkeys(printable(item.file) for item in items))
        index = next((i for i, pair in enumerate(zip(before, now)) if pair[0] != pair[1]), min(len(before), len(now)))
        first, other = (f"{some[index]!r}" if index < len(some) else "nothing" for some in (now, before))
        place = f"the listing changed after {number * FILES + index} files"
        if first == other:
            return f"{self.folder}: {place}; it must be as in the first run, or the folder deleted"
        return f"{self.folder}: {place}: {first}, before {other}; it must be the same, or the folder deleted"

    def _unwritten(self, path: Path, error: OSError) -> OutputError:
        done = len(self._numbers())
        safe = f"the {done * FILES} files of {done} finished parts are safe in {self.folder}"
        return OutputError(f"{path}: {error.strerror or error}; {safe}, and the same command resumes")


def numbered(items: Iterable[Item]) -> Iterator[tuple[int, list[Item]]]:
    """Yield the items in parts, with their numbers."""
    part: list[Item] = []
    number = 0
    for item in items:
        part.append(item)
        if len(part) == FILES:
            yield number, part
            part, number = [], number + 1
    if part:
        yield number, part


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _digest(items: list[Item]) -> str:
    names = "\n".join(f"{item.file}\0{item.start}\0{item.end}" for item in items)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())

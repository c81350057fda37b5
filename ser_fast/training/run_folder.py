"""The folder of a run: one process at a time writes it, and every file in it is whole."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ser_fast.data.files import write_atomically

_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


class RunFolder:
    """The folder of one run, locked by this process while the context lasts.

    ``config.json`` in it keeps the options of the run, so that only a run with the same options resumes there.

    Args:
        path: a folder that does not exist, is empty or holds this run.
        options: options of the run, in types that JSON has or that ``str`` can write.
        required: options that the ``config.json`` of every run contains; a file without them is not of a run.
        free: options that may change when the run is resumed.
        may_grow: options, integers, that may become larger when the run is resumed.
        later: options that the ``config.json`` of an older version may lack, with the values that its run had; a
            dict has those of an option that is a dict itself.

    Raises:
        ValueError: on entering, if the folder holds something else, another process has locked it or it cannot be
            written. No file in it has been changed then.
    """

    def __init__(
        self,
        path: Path,
        options: dict,
        *,
        required: Iterable[str] = (),
        free: Iterable[str] = (),
        may_grow: Iterable[str] = (),
        later: Mapping[str, object] = MappingProxyType({}),
    ):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.options = json.loads(json.dumps(options, default=str))
        self.required, self.free, self.may_grow = set(required), set(free), set(may_grow)
        self.later = {name: value for name, value in later.items() if name in self.options}

    def __enter__(self) -> "RunFolder":
        self._compare()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            self._refuse(f", which cannot be written ({error.strerror})")
        try:
            self._acquire()
            self._compare()  # another process may have begun a run since
        except BaseException:
            self._lock.close()
            raise
        for leftover in self.path.rglob(".*.tmp"):  # of a run that was killed during a write
            if _TEMPORARY.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        return self

    def __exit__(self, *_) -> None:
        if not self.config.is_file():  # the run failed before begin(): leave no empty folder
            with contextlib.suppress(OSError):
                os.unlink(self._lock.name)
                self.path.rmdir()
        self._lock.close()

    def begin(self) -> None:
        """Write ``config.json``: from here on the folder belongs to this run."""
        self.write("config.json", json.dumps(self.options, indent=1) + "\n")

    def write(self, name: str, content: str) -> None:
        """Write a text file of the folder atomically."""
        write_atomically(self.path / name, content.encode(errors="backslashreplace"))

    def _compare(self) -> None:
        if not self.config.is_file():
            if self.path.is_dir() and any(not _written_before_begin(path) for path in self.path.iterdir()):
                self._refuse(", which holds other files")
            return
        try:
            before = json.loads(self.config.read_text())
        except (ValueError, RecursionError, OSError) as error:
            self._refuse(f", whose config.json is not readable JSON ({error})")
        if not isinstance(before, dict) or not self.required <= before.keys():
            self._refuse(", whose config.json is not of such a run")
        before, now = (self._with_later(options) for options in (before, self.options))
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        changed -= self.free
        changed -= {name for name in changed & self.may_grow if _grew(before.get(name), self.options.get(name))}
        if changed:
            self._refuse(f", which contains a run with different {', '.join(sorted(changed))}")

    def _with_later(self, options: dict) -> dict:
        """Return options with those of ``later`` that they lack."""
        nested = {
            name: value | options[name]
            for name, value in self.later.items()
            if isinstance(value, dict) and isinstance(options.get(name), dict)
        }
        return self.later | options | nested

    def _acquire(self) -> None:
        """Take the lock, which the system releases however the process ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            acquired = os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name))
        except (BlockingIOError, FileNotFoundError):
            acquired = False
        if not acquired:
            self._refuse(", which another process is using")

    def _refuse(self, reason: str) -> None:
        raise ValueError(f"out is {self.path}{reason}; it must be a new folder")


def _grew(before, now) -> bool:
    return isinstance(before, int) and isinstance(now, int) and before < now


def _written_before_begin(path: Path) -> bool:
    """Return whether a run that ended before begin() may have left this file."""
    return path.name == ".lock" or (_TEMPORARY.fullmatch(path.name) is not None and path.is_file())

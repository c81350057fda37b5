"""A run's folder: one run, one process at a time, and every file in it whole."""

import contextlib
import json
import os
import re
from pathlib import Path

from ser_fast.data.files import write_atomically

# Where a run reads, writes and computes may change between its parts; the trainer compares the corpus itself.
FREE = ("data", "out", "device", "skip_bad")
_TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


class RunFolder:
    """The folder of one run, held by this process while the context lasts.

    Args:
        path: a folder that does not exist, is empty or holds this very run.
        options: what the run depends on; ``config.json`` keeps it. A run may go on with more ``epochs`` where its
            ``schedule`` does not count them, a cross-validation with more ``seeds``.

    Raises:
        ValueError: on entering, if something else lies there, another process holds it or it cannot be written.
            Nothing that lies there has been touched then.
    """

    def __init__(self, path: Path, options: dict):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.options = json.loads(json.dumps(options, default=str))

    def __enter__(self) -> "RunFolder":
        self._compare()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            self._refuse(f", which cannot be written ({error.strerror})")
        try:
            self._hold()
            self._compare()  # another process may have begun a run since
        except BaseException:
            self._lock.close()
            raise
        for leftover in self.path.rglob(".*.tmp"):  # of a run that was killed while it wrote
            if _TEMPORARY.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        return self

    def __exit__(self, *_) -> None:
        if not self.config.is_file():  # the run ended before it began, and leaves no empty folder
            with contextlib.suppress(OSError):
                os.unlink(self._lock.name)
                self.path.rmdir()
        self._lock.close()

    def begin(self) -> None:
        """Keep the options: from here on the folder is this run's."""
        self.write("config.json", json.dumps(self.options, indent=1) + "\n")

    def write(self, name: str, content: str) -> None:
        write_atomically(self.path / name, content.encode())

    def _compare(self) -> None:
        if not self.config.is_file():
            if self.path.is_dir() and any(not _ours_before_begin(path) for path in self.path.iterdir()):
                self._refuse(", which holds other files")
            return
        try:
            before = json.loads(self.config.read_text())
        except (ValueError, RecursionError, OSError) as error:
            self._refuse(f", whose config.json is not readable JSON ({error})")
        if not isinstance(before, dict) or not {"epochs", "seed"} <= before.keys():
            self._refuse(", whose config.json is not of a run")
        changed = {name for name in before.keys() | self.options.keys() if before.get(name) != self.options.get(name)}
        changed -= set(FREE)
        changed -= {name for name in ("epochs", "seeds") if name in changed and self._grows(name, before.get(name))}
        if changed:
            self._refuse(f", where a run with another {', '.join(sorted(changed))} lies")

    def _grows(self, name: str, before) -> bool:
        now = self.options.get(name)
        if not (isinstance(before, int) and isinstance(now, int) and before < now):
            return False
        # With a choice among candidates the longer run may be another's.
        counted = self.options.get("schedule", "constant") != "constant" or self.options.get("choose")
        return name == "seeds" or not counted

    def _hold(self) -> None:
        """The system lets go of the lock however the process ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name))
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            self._refuse(", where another process is at work")

    def _refuse(self, reason: str) -> None:
        raise ValueError(f"out is {self.path}{reason}; it must be a new folder")


def _ours_before_begin(path: Path) -> bool:
    """What a run leaves behind that ended before it had read its corpus."""
    return path.name == ".lock" or (_TEMPORARY.fullmatch(path.name) is not None and path.is_file())

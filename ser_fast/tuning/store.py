"""Write the tuned choices: whole or not at all, and one process after the other."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from ser_fast._require import require
from ser_fast.backends import tuned
from ser_fast.data.files import write_atomically


def write(key: dict, *, choices: dict | None = None, rules: dict | None = None, banned: dict | None = None) -> Path:
    """Store the entry of a key, in place of an older one, and return the file. A damaged file is replaced.

    Raises:
        ValueError: as :func:`destination`.
        OSError: the file cannot be read or written.
    """
    file = destination()
    file.parent.mkdir(parents=True, exist_ok=True)
    entry = {"key": key, "date": datetime.date.today().isoformat()}
    entry |= {"choices": choices or {}, "rules": rules or {}, "banned": banned or {}}
    tuned.check(tuned.digest(key), entry)
    with locked(file.with_name(f"{file.name}.lock")):
        try:
            entries = tuned.load(file)
        except ValueError:
            entries = {}
        entries[tuned.digest(key)] = entry
        write_atomically(file, f"{json.dumps(entries, indent=1)}\n".encode())
    return file


def destination() -> Path:
    """Return the file of the tuned choices.

    Raises:
        ValueError: ``SER_FAST_TUNED=0`` turns it off; it names a folder or a device, which would be replaced; or the
            home folder is unknown.
    """
    file = tuned.path()
    if file is None:
        raise ValueError(f"{tuned.VARIABLE} is 0, so choices are not read; unset it, or set it to the path of a file")
    if str(file).startswith("~"):  # not expanded
        raise ValueError(f"{file} has no known home folder; set {tuned.VARIABLE} to the whole path of a file")
    with contextlib.suppress(PermissionError):  # the results will still be printed, and storing them names the error
        require(file.is_file() or not file.exists(), f"{tuned.VARIABLE} is {file}", "the path of a regular file")
    return file


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file while the context lasts; the system releases it if the process dies.

    Raises:
        BlockingIOError: another process holds it and ``wait`` is False.
    """
    with open(path, "ab") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def alone(device: str) -> Iterator[None]:
    """Let one process at a time tune a device; without a cache folder to lock in, any number.

    Raises:
        RuntimeError: another process tunes it.
    """
    file = destination()
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(file.with_name(f"{file.name}.{device}.lock"), wait=False))
        except BlockingIOError:
            raise RuntimeError(f"another `ser-fast tune` is running on {device}; wait for its end") from None
        except OSError:  # the results will still be printed, and storing them names the error
            pass
        yield

"""Helpers of the readers of corpora in folders."""

from collections import Counter
from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.audio import search_audio
from ser_fast.data.files import passed_over
from ser_fast.data.wav import AudioError

_SHOWN = 5
_QUOTED = 80


def require_folder(root: str | PathLike[str], wanted: str) -> Path:
    """Return ``root`` as a path.

    Raises:
        FileNotFoundError: it is not a folder; the message names what is ``wanted``.
    """
    root = Path(root)
    require(root.is_dir(), f"root {str(root)!r} is not an existing folder", wanted, FileNotFoundError)
    return root


def wanted_files(root: str | PathLike[str], wanted: str) -> tuple[list[Path], str]:
    """Return the audio files below ``root``, and a sentence about files that were passed over.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file; the message names what is ``wanted``.
    """
    root = require_folder(root, wanted)
    try:
        found = search_audio(root)
    except AudioError as error:
        raise ValueError(f"{error}; expected {wanted}") from error
    return found.audio, passed_over(found)


def refuse(files: list[str], folder: Path, fault: str, wanted: str) -> None:
    """Raise ``ValueError`` with the number and the first of these files, if there are any."""
    shown = ", ".join(files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    require(not files, f"{str(folder)!r} has {count} ({shown}) {fault}", wanted)


def repeated(names: list[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def quoted(value: object) -> str:
    """Return a value of a table as a message shows it, at most 80 characters."""
    text = repr(value[:_QUOTED] if isinstance(value, str | list) else value)
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."

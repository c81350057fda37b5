"""What the readers of corpora that lie in folders share."""

from collections import Counter
from os import PathLike
from pathlib import Path

from ser_fast.data.audio import find_audio
from ser_fast.data.wav import AudioError

_SHOWN = 5


def require_folder(root: str | PathLike[str], allowed: str) -> Path:
    """``root`` as a path; raises ``FileNotFoundError`` if it is not a folder."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root {str(root)!r} is not an existing folder, allowed: {allowed}")
    return root


def wanted_files(root: str | PathLike[str], wanted: str) -> list[Path]:
    """The audio files below ``root``, or else an error that says what is wanted there."""
    root = require_folder(root, wanted)
    try:
        return find_audio(root)
    except AudioError as error:
        raise ValueError(f"{str(root)!r} holds no audio file, allowed: {wanted}") from error


def refuse(files: list[str], folder: Path, fault: str, allowed: str) -> None:
    """Raise ``ValueError`` with the first of these files and their number, if there are any."""
    if files:
        shown = ", ".join(files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")
        count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
        raise ValueError(f"{count} ({shown}) under {str(folder)!r} {fault}, allowed: {allowed}")


def repeated(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]

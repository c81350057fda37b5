"""Helpers of the readers of corpora in folders."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.audio import search_audio
from ser_fast.data.files import AUDIO_SUFFIXES, passed_over
from ser_fast.data.utterance import Corpus, Utterance
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


def named_corpus(
    name: str,
    root: Path,
    read: Callable[[Path], tuple[str, str, str] | None],
    order: Sequence[str],
    fault: str,
    wanted: str,
) -> Corpus:
    """Return a corpus whose file names tell speakers and labels.

    Args:
        name: name of the corpus.
        root: its folder.
        read: returns name, speaker and label of a file, None for a file with another kind of name.
        order: the labels; the classes are those that occur, in this order.
        fault: phrase about files with another kind of name.
        wanted: what ``root`` must be, for messages.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, one with another kind of name, or two of the same name.
    """
    files, others = wanted_files(root, wanted)
    found = [(read(path), path) for path in files]
    refuse([path.relative_to(root).as_posix() for names, path in found if names is None], root, fault, wanted)
    refuse(repeated([names[0] for names, _ in found]), root, "more than once", "a folder without repeated names")
    utterances = [Utterance(*names, path) for names, path in found]
    present = {utterance.label for utterance in utterances}
    return Corpus(name, utterances, [label for label in order if label in present], others)


def readable(path: Path) -> Path:
    """Return a file, or the audio file beside it that has its name and another suffix, if it is no audio itself."""
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return path
    return next((file for file in map(path.with_suffix, AUDIO_SUFFIXES) if file.is_file()), path)


def extraction(folder: Path, suffix: str) -> str:
    """Return the command that writes a WAV file beside every film below a folder."""
    extract = f'ffmpeg -nostdin -loglevel error -y -i "$1" -vn -ac 1 -ar 16000 "${{1%{suffix}}}.wav"'
    return f"find {shlex.quote(str(folder))} -name '*{suffix}' -exec sh -c '{extract}' _ {{}} \\;"


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

"""Names of files, the search for audio files, and atomic writes."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")

# Audio and video that is not read; a corpus that has such files is probably incomplete without them.
_UNREAD_SUFFIXES = {
    ".3g2", ".3gp", ".aac", ".ac3", ".aifc", ".amr", ".ape", ".au", ".avi", ".awb", ".caf", ".dts", ".eac3", ".flv",
    ".gsm", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg", ".nist",
    ".oga", ".ogv", ".pcm", ".ra", ".raw", ".rf64", ".rm", ".snd", ".sph", ".spx", ".tta", ".voc", ".vox", ".w64",
    ".webm", ".wma", ".wmv", ".wv",
}  # fmt: skip
# Annotations, documents and pictures, which accompany audio in every corpus; "" is that of README and LICENSE.
_COMPANION_SUFFIXES = {
    "",
    ".bib", ".cha", ".csv", ".ctm", ".doc", ".docx", ".eaf", ".htm", ".html", ".jpeg", ".jpg", ".json", ".jsonl",
    ".lab", ".log", ".md", ".pdf", ".phn", ".png", ".rst", ".rtf", ".rttm", ".srt", ".stm", ".svg", ".textgrid",
    ".trs", ".tsv", ".txt", ".vtt", ".wrd", ".xls", ".xlsx", ".xml", ".yaml", ".yml",
}  # fmt: skip
_SHOWN = 5

# Control characters, among them those that turn the direction of writing, and the surrogates that stand for bytes of
# a file name that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(name: object) -> str:
    r"""Return a name as it is printed, and written to tables, pages and figures.

    A control character, or a byte of a file name that is not UTF-8, becomes Python's escape of it: ``\n``, ``\x1b``,
    ``\udcd6`` for the byte D6. All else stays, so applying this twice changes nothing. If the name itself has no
    backslash, ``printed.encode("latin-1", "backslashreplace").decode("unicode_escape")`` is the name.

    Example:
        >>> print(printable(os.fsdecode(b"corpus/\xd6\xd0.wav")))
        corpus/\udcd6\udcd0.wav
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(name))


@dataclass(frozen=True)
class Found:
    """Files below a folder.

    Attributes:
        audio: the files whose suffix is in ``AUDIO_SUFFIXES``, sorted.
        others: number of the other files of each suffix, in lower case.
        closed: folders that could not be opened.
    """

    audio: list[Path]
    others: Counter[str] = field(default_factory=Counter)
    closed: list[Path] = field(default_factory=list)


def search(folder: str | os.PathLike[str]) -> Found:
    """Return the files below a folder, as :func:`walk` finds them."""
    found = Found([])
    found.audio.extend(sorted(map(Path, walk(folder, found))))
    return found


def walk(folder: str | os.PathLike[str], found: Found) -> Iterator[str]:
    """Yield the audio files below a folder in sorted order, holding the names of one branch of folders at a time.

    Hidden files and folders are skipped. Linked folders are followed, after all others; a folder that was visited
    under another name is not visited again, so a link to a folder above it ends.

    Args:
        folder: the folder.
        found: ``others`` and ``closed`` are filled while the walk goes on.
    """
    visited: set[tuple[int, int]] = set()
    starts = [str(Path(folder))]
    for start in starts:
        branch = [(start, True)]
        while branch:
            path, is_folder = branch.pop()
            if is_folder and path != start and os.path.islink(path):
                starts.append(path)
            elif is_folder:
                branch += reversed(_entries(path, found, visited))
            elif path.lower().endswith(AUDIO_SUFFIXES):
                yield path
            else:
                found.others[os.path.splitext(path)[1].lower()] += 1


def _entries(folder: str, found: Found, visited: set[tuple[int, int]]) -> list[tuple[str, bool]]:
    """Return the sorted paths in a folder that was not visited, each with whether it is a folder itself."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            return []
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            return sorted((entry.path, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        found.closed.append(Path(error.filename))
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def passed_over(found: Found, audio: int | None = None) -> str:
    """Return a sentence about what a search passed over, or ``""``; texts and pictures do not count.

    Args:
        found: the search.
        audio: number of audio files; by default that of ``found.audio``.

    Example:
        >>> passed_over(Found([Path("a.wav")] * 27, Counter({".wma": 18, ".txt": 45, ".bak": 1})))
        'passed over 18 of 45 audio files: 18 .wma (not read; readable: .wav, ...); 1 other file: 1 .bak'
    """
    lost = Counter({suffix: count for suffix, count in found.others.items() if suffix in _UNREAD_SUFFIXES})
    rest = found.others - lost
    rest = Counter({suffix: count for suffix, count in rest.items() if suffix not in _COMPANION_SUFFIXES})
    clauses = []
    if lost:
        readable = ", ".join(AUDIO_SUFFIXES)
        total = lost.total() + (len(found.audio) if audio is None else audio)
        clauses.append(f"{lost.total()} of {total} audio files: {_counts(lost)} (not read; readable: {readable})")
    if rest:
        clauses.append(f"{rest.total()} other file{'s' * (rest.total() > 1)}: {_counts(rest)}")
    if found.closed:
        shown = ", ".join(map(printable, found.closed[:_SHOWN])) + (", ..." if len(found.closed) > _SHOWN else "")
        clauses.append(f"{len(found.closed)} folder{'s' * (len(found.closed) > 1)} that cannot be opened: {shown}")
    return "passed over " + "; ".join(clauses) if clauses else ""


def _counts(suffixes: Counter[str]) -> str:
    """Return ``18 .wma, 2 .m4a`` for the most frequent suffixes."""
    shown = ", ".join(f"{count} {printable(suffix)}" for suffix, count in suffixes.most_common(_SHOWN))
    return shown + (", ..." if len(suffixes) > _SHOWN else "")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: readers, also after a crash, see the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno:
            error.filename = str(path)  # a write error names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)

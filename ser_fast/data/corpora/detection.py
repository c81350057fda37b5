"""Detection of corpora by the names of their files, which refuses rather than guesses."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ser_fast.data.corpora import audformat, casia, cremad, emodb, labels, ravdess, savee, tess
from ser_fast.data.files import printable

# Corpora that are recognised by the paths of their files, and by which of these functions.
RECOGNISED: dict[str, Callable[[Path], bool]] = {
    "emodb": emodb.follows_scheme,
    "ravdess": ravdess.follows_scheme,
    "casia": casia.follows_layout,
    "cremad": cremad.follows_scheme,
    "tess": tess.follows_scheme,
    "savee": savee.follows_layout,
}


def kind_of(root: Path, files: list[Path]) -> str:
    """Return the corpus that all files are named as in, "audformat" for its databases, "folders" if few are.

    Args:
        root: the folder of the corpus.
        files: its audio files.

    Raises:
        ValueError: files are named as in several corpora, or most but not all as in one; the message says what to
            type instead.
    """
    counts = {kind: sum(map(follows, files)) for kind, follows in RECOGNISED.items()}
    whole = [kind for kind, count in counts.items() if files and count == len(files)]
    if len(whole) == 1:
        return whole[0]
    if (root / audformat.HEADER).is_file():
        return "audformat"
    candidates = whole or [kind for kind, count in counts.items() if 2 * count > len(files)]
    if not candidates:
        return "folders"
    fits = ", ".join(f"{counts[kind]} as in {kind}" for kind in candidates)
    stray = next((path for path in files if not RECOGNISED[candidates[0]](path)), None)
    other = f", but not {printable(stray.relative_to(root))}" if stray else ""
    found = f"corpus {str(root)!r} has {len(files)} audio files, {fits}{other}"
    options = " or ".join(typed(f"{kind}:", root) for kind in (*candidates, "folders"))
    raise ValueError(f"{found}; it must be named: {options}")


def mostly(files: Iterable[Path]) -> str | None:
    """Return the corpus that more than half of the files are named as in, None if there is none."""
    files = list(files)
    return next((kind for kind, follows in RECOGNISED.items() if labels.mostly(files, follows)), None)


def typed(kind: str, path: Path) -> str:
    """Return the option ``--data`` in double quotes, which every shell takes."""
    return "--data=" + json.dumps(f"{kind}{printable(path)}", ensure_ascii=False)

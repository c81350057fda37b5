"""Emo-DB: F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier and B. Weiss,
"A Database of German Emotional Speech", Interspeech 2005."""

import re
from os import PathLike
from pathlib import Path

from ser_fast.data.corpora.trees import named_corpus, require_folder
from ser_fast.data.utterance import Corpus

# The letters abbreviate the German words: Wut, Langeweile, Ekel, Angst, Freude, Trauer.
LABELS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}

_STEM = re.compile(r"(?P<speaker>[0-9]{2})[a-z][0-9]{2}(?P<emotion>[WLEAFTN])[a-z]")


def follows_scheme(path: Path) -> bool:
    """Return whether a file is named as in Emo-DB, ``SSTTTEV``: speaker, sentence, emotion, take."""
    return _STEM.fullmatch(path.stem) is not None


def emodb(root: str | PathLike[str]) -> Corpus:
    """Return Emo-DB with speakers and labels from the file names ``SSTTTEV.wav``, such as ``03a01Wa.wav``.

    The classes are those that occur, in the order of ``LABELS``.

    Args:
        root: the folder of the WAV files, or the folder that contains it as ``wav``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file with another kind of name, or two files of the same name.
    """
    root = require_folder(root, "Emo-DB's")
    folder = root / "wav" if (root / "wav").is_dir() else root
    scheme = "a folder of names of 2-digit speaker, 3-character sentence, emotion letter of WLEAFTN, take letter"
    return named_corpus("emodb", folder, _named, list(LABELS.values()), "not named like 03a01Wa.wav", scheme)


def _named(path: Path) -> tuple[str, str, str] | None:
    stem = _STEM.fullmatch(path.stem)
    return stem and (path.stem, stem["speaker"], LABELS[stem["emotion"]])

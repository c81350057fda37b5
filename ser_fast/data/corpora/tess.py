"""TESS: M. K. Pichora-Fuller and K. Dupuis, "Toronto emotional speech set (TESS)", Scholars Portal Dataverse, 2010,
https://doi.org/10.5683/SP2/E8H2MF."""

import re
from os import PathLike
from pathlib import Path

from ser_fast.data.corpora.trees import named_corpus, require_folder
from ser_fast.data.utterance import Corpus

LABELS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "ps": "surprise",  # pleasant surprise
}

# One file of the older speaker is named OA instead of OAF.
_STEM = re.compile(r"(?P<speaker>[OY]A)F?_(?P<word>[a-z]+)_(?P<emotion>angry|disgust|fear|happy|neutral|sad|ps)")
_WANTED = (
    "TESS's *.wav named like OAF_back_angry.wav, speaker OAF or YAF, word and emotion, in any folders: "
    "https://doi.org/10.5683/SP2/E8H2MF"
)


def follows_scheme(path: Path) -> bool:
    """Return whether a file is named as in TESS."""
    return _STEM.fullmatch(path.stem) is not None


def tess(root: str | PathLike[str]) -> Corpus:
    """Return TESS with its two speakers and seven emotions from names such as ``OAF_back_angry.wav``.

    The names of the folders, which differ between copies, are not used. The classes are those that occur, in the
    order of ``LABELS``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file with another kind of name, or two files of the same name.
    """
    root = require_folder(root, _WANTED)
    return named_corpus("tess", root, _named, list(LABELS.values()), "not named like OAF_back_angry.wav", _WANTED)


def _named(path: Path) -> tuple[str, str, str] | None:
    stem = _STEM.fullmatch(path.stem)
    if stem is None:
        return None
    speaker = f"{stem['speaker']}F"
    return f"{speaker}_{stem['word']}_{stem['emotion']}", speaker, LABELS[stem["emotion"]]

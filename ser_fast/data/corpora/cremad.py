"""CREMA-D: H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova and R. Verma, "CREMA-D: Crowd-sourced
emotional multimodal actors dataset", IEEE Transactions on Affective Computing 5(4), 2014."""

import re
from os import PathLike
from pathlib import Path

from ser_fast.data.corpora.trees import named_corpus, require_folder
from ser_fast.data.utterance import Corpus

LABELS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}

# Some copies have a level X.
_STEM = re.compile(r"(?P<speaker>1[0-9]{3})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(XX?|LO|MD|HI)")
_WANTED = (
    "CREMA-D's AudioWAV/*.wav named like 1001_DFA_ANG_XX.wav, actor, sentence, emotion and level: "
    "https://github.com/CheyneyComputerScience/CREMA-D"
)


def follows_scheme(path: Path) -> bool:
    """Return whether a file is named as in CREMA-D."""
    return _STEM.fullmatch(path.stem) is not None


def cremad(root: str | PathLike[str]) -> Corpus:
    """Return CREMA-D with speakers and the acted emotions from names such as ``1001_DFA_ANG_XX.wav``.

    All levels of intensity are used. The classes are those that occur, in the order of ``LABELS``.

    Args:
        root: the folder of the WAV files, or the release, which contains it as ``AudioWAV``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file with another kind of name, or two files of the same name.
    """
    root = require_folder(root, _WANTED)
    folder = root / "AudioWAV" if (root / "AudioWAV").is_dir() else root
    return named_corpus(
        "cremad", folder, _named, list(LABELS.values()), "not named like 1001_DFA_ANG_XX.wav", _WANTED
    )


def _named(path: Path) -> tuple[str, str, str] | None:
    stem = _STEM.fullmatch(path.stem)
    return stem and (path.stem, stem["speaker"], LABELS[stem["emotion"]])

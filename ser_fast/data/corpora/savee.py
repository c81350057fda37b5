"""SAVEE: S. Haq and P. J. B. Jackson, "Multimodal emotion recognition", in Machine Audition: Principles, Algorithms
and Systems, IGI Global, 2010."""

import re
from os import PathLike
from pathlib import Path

from ser_fast.data.corpora.trees import named_corpus, require_folder
from ser_fast.data.utterance import Corpus

LABELS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}

_NAME = re.compile(r"(?P<speaker>DC|JE|JK|KL)[_/](?P<take>(?P<emotion>a|d|f|h|n|sa|su)[0-9]{2})")
_WANTED = (
    "SAVEE's AudioData/DC/a01.wav, or names such as DC_a01.wav, speaker DC, JE, JK or KL, emotion a, d, f, h, n, sa "
    "or su and number: http://kahlan.eps.surrey.ac.uk/savee"
)


def follows_layout(path: Path) -> bool:
    """Return whether a file is named as in SAVEE, in the folder of a speaker or with the speaker in front."""
    return _found(path) is not None


def savee(root: str | PathLike[str]) -> Corpus:
    """Return SAVEE with speakers and labels from ``AudioData/DC/a01.wav`` or from names such as ``DC_a01.wav``.

    The classes are those that occur, in the order of ``LABELS``.

    Args:
        root: the release, its ``AudioData``, or a folder of the files with the speaker in their names.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file with another kind of name, or two files of the same name.
    """
    root = require_folder(root, _WANTED)
    folder = root / "AudioData" if (root / "AudioData").is_dir() else root
    fault = "not named like DC/a01.wav or DC_a01.wav"
    return named_corpus("savee", folder, _named, list(LABELS.values()), fault, _WANTED)


def _found(path: Path) -> re.Match | None:
    return _NAME.fullmatch(path.stem) or _NAME.fullmatch(f"{path.parent.name}/{path.stem}")


def _named(path: Path) -> tuple[str, str, str] | None:
    found = _found(path)
    return found and (f"{found['speaker']}_{found['take']}", found["speaker"], LABELS[found["emotion"]])

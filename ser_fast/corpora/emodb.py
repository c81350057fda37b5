"""Emo-DB: F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier and B. Weiss,
"A Database of German Emotional Speech", Interspeech 2005."""

import re
from collections import Counter
from os import PathLike
from pathlib import Path

from ser_fast.audio import find_audio
from ser_fast.corpora.utterance import Corpus, Utterance

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
_SHOWN = 5


def follows_scheme(path: Path) -> bool:
    """Whether the file is named as in Emo-DB, ``SSTTTEV``: speaker, sentence, emotion, take."""
    return _STEM.fullmatch(path.stem) is not None


def emodb(root: str | PathLike[str]) -> Corpus:
    """Emo-DB, its speakers and labels taken from the file names ``SSTTTEV.wav``, as in ``03a01Wa.wav``.

    ``root`` is the folder of the WAV files or the one that has it as ``wav/``. The classes are those that
    occur, in the order of ``LABELS``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it holds no audio file, a file that is not named so, or two of the same name.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root {str(root)!r} is not an existing folder, allowed: Emo-DB's")
    folder = root / "wav" if (root / "wav").is_dir() else root
    files = find_audio(folder)

    strays = [path.name for path in files if not follows_scheme(path)]
    if strays:
        raise ValueError(
            f"{_listed(strays)} under {str(folder)!r} not named like 03a01Wa.wav, "
            "allowed: 2-digit speaker, 3-character sentence, emotion letter of WLEAFTN, take letter"
        )
    repeated = [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]
    if repeated:
        raise ValueError(f"{_listed(repeated)} under {str(folder)!r} more than once, allowed: once")

    utterances = []
    for path in files:
        stem = _STEM.fullmatch(path.stem)
        utterances.append(Utterance(path.stem, stem["speaker"], LABELS[stem["emotion"]], path))
    present = {utterance.label for utterance in utterances}
    return Corpus("emodb", utterances, [label for label in LABELS.values() if label in present])


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} file{'s' if len(names) > 1 else ''} ({shown})"

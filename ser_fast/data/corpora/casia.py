"""CASIA: the Chinese emotional speech corpus of the Institute of Automation, Chinese Academy of Sciences."""

from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.corpora.trees import refuse, wanted_files
from ser_fast.data.utterance import Corpus, Utterance

CLASSES = ("anger", "fear", "happiness", "neutral", "sadness", "surprise")

# In the release the folder is "neutral" in the part with shared texts and "normal" in the other one.
_LABELS = {
    **{name: name for name in CLASSES},
    "angry": "anger",
    "happy": "happiness",
    "normal": "neutral",
    "sad": "sadness",
}
# The two parts of the release spell the same four speakers in two ways.
_SPEAKERS = {
    "Chang.Liu": "liuchanhg",
    "Zhe.Wang": "wangzhe",
    "Quanyin.Zhao": "zhaoquanyin",
    "Zuoxiang.Zhao": "ZhaoZuoxiang",
}
_WANTED = (
    "CASIA's SPEAKER/EMOTION/*.wav of its 4 speakers, below this folder or one for each part of the release, "
    "emotions angry, fear, happy, neutral, sad, surprise; licensed by the Institute of Automation, Chinese Academy "
    "of Sciences"
)


def follows_layout(path: Path) -> bool:
    """Return whether a file is in the folders of one of CASIA's speakers and of an emotion."""
    speaker, emotion = ("", "", *path.parts)[-3:-1]
    known = {name.casefold() for spellings in _SPEAKERS.items() for name in spellings}
    return speaker.casefold() in known and emotion.lower() in _LABELS


def casia(root: str | PathLike[str]) -> Corpus:
    """Return CASIA with speakers and labels from the folders ``root/**/SPEAKER/EMOTION/*.wav``.

    The classes are those of ``CLASSES`` that occur; a speaker has one name in both parts of the release.

    Args:
        root: the whole release, or its part of 300 texts that all emotions share, or that of the other 100 texts.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file in another place, or more than 4 speakers.
    """
    root, (files, others) = Path(root), wanted_files(root, _WANTED)
    inside = [path.relative_to(root) for path in files]
    strays = [path.as_posix() for path in inside if len(path.parts) < 3 or path.parts[-2].lower() not in _LABELS]
    refuse(strays, root, "not in the folders of a speaker and an emotion", _WANTED)

    utterances = []
    for path, name in zip(files, inside, strict=True):
        speaker, emotion = name.parts[-3:-1]
        utterances.append(Utterance(name.as_posix(), _SPEAKERS.get(speaker, speaker), _LABELS[emotion.lower()], path))
    present = {utterance.label for utterance in utterances}
    corpus = Corpus("casia", utterances, [label for label in CLASSES if label in present], others)
    # A speaker with two names could be in the training and in the test part.
    require(len(corpus.speakers) <= 4, f"root {str(root)!r} has the speakers {', '.join(corpus.speakers)}", _WANTED)
    return corpus

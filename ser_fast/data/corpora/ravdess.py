"""RAVDESS: S. R. Livingstone and F. A. Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song",
PLoS ONE 13(5), 2018."""

import re
from os import PathLike
from pathlib import Path

from ser_fast.data.corpora.trees import refuse, repeated, wanted_files
from ser_fast.data.utterance import Corpus, Utterance

LABELS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}

_STEM = re.compile(
    r"(?P<modality>0[1-3])-(?P<channel>0[12])-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])"
    r"-(?P<repetition>0[12])-(?P<actor>[0-9]{2})"
)
_WANTED = (
    "RAVDESS's audio-only speech, Actor_NN/*.wav named like 03-01-06-01-02-01-12.wav: "
    "Audio_Speech_Actors_01-24.zip from https://zenodo.org/records/1188976, unpacked into this folder"
)


def follows_scheme(path: Path) -> bool:
    """Return whether a file is named by RAVDESS's seven numbers, for speech or song, audio or video."""
    return _STEM.fullmatch(path.stem) is not None


def ravdess(root: str | PathLike[str]) -> Corpus:
    """Return the speech of RAVDESS with speakers and labels from names such as ``03-01-06-01-02-01-12.wav``.

    The numbers are modality, vocal channel, emotion, intensity, statement, repetition and actor. Both intensities
    are used. The classes are those that occur, in the order of ``LABELS``. Song, which lacks two of the emotions, and
    sound from the films, which repeats the speech, are errors and not skipped.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: it has no audio file, a file with another kind of name or that is not audio-only speech, or two
            files of the same name.
    """
    root, (files, others) = Path(root), wanted_files(root, _WANTED)
    refuse([path.name for path in files if not follows_scheme(path)], root, "not named by seven numbers", _WANTED)
    stems = [_STEM.fullmatch(path.stem) for path in files]
    refuse([stem.string for stem in stems if stem["channel"] == "02"], root, "of the song", _WANTED)
    refuse([stem.string for stem in stems if stem["modality"] != "03"], root, "of the films", _WANTED)
    refuse(repeated([stem.string for stem in stems]), root, "more than once", "a folder without repeated names")

    utterances = [
        Utterance(stem.string, stem["actor"], LABELS[stem["emotion"]], path) for stem, path in zip(stems, files)
    ]
    present = {utterance.label for utterance in utterances}
    return Corpus("ravdess", utterances, [label for label in LABELS.values() if label in present], others)

"""MELD: S. Poria, D. Hazarika, N. Majumder, G. Naik, E. Cambria and R. Mihalcea, "MELD: A Multimodal Multi-Party
Dataset for Emotion Recognition in Conversations", ACL 2019."""

import io
from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.corpora.delimited import decoded, read_table
from ser_fast.data.corpora.rows import text
from ser_fast.data.corpora.trees import extraction, readable, require_folder
from ser_fast.data.files import AUDIO_SUFFIXES
from ser_fast.data.utterance import Corpus, Utterance

LABELS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "joy": "happiness",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
}
# Table and folder of each part.
_PARTS = {
    "train": ("train_sent_emo.csv", "train_splits"),
    "valid": ("dev_sent_emo.csv", "dev_splits_complete"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test"),
}
_SHOWN = 5
_MOST_LOST = 0.01  # share of the utterances; the release lacks one file and one film is damaged
_WANTED = (
    "MELD.Raw with its three archives unpacked: train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv and the "
    "folders train_splits, dev_splits_complete, output_repeated_splits_test: https://affective-meld.github.io"
)


def follows_layout(root: Path) -> bool:
    """Return whether a folder has the table of one of MELD's parts."""
    return any(_inside(root, table) for table, _ in _PARTS.values())


def meld(root: str | PathLike[str]) -> Corpus:
    """Return MELD with its own parts; the speakers are the names of the characters.

    An utterance is a WAV or other audio file beside or instead of its film, such as ``train_splits/dia0_utt0.wav``.
    Utterances without audio are passed over if they are few. ``joy`` is the class happiness, as in other corpora.

    Args:
        root: the folder ``MELD.Raw``, with the parts in it or in folders of its own such as ``train``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: a table or folder is missing, a table is malformed, or 1 % of the audio and more than five files
            are missing; the message then has the command that extracts the audio from the films.
    """
    root = require_folder(root, _WANTED)
    utterances, lost = [], []
    for part, (table, folder) in _PARTS.items():
        place, films = _inside(root, table), _inside(root, folder)
        for name, found in ((table, place), (folder, films)):
            require(found is not None, f"root {str(root)!r} holds no {name}", _WANTED)
        for utterance in _listed(place, films, part):
            audio = utterance.path.suffix.lower() in AUDIO_SUFFIXES
            (utterances if audio else lost).append(utterance)
    count, total = len(lost), len(lost) + len(utterances)
    films = sum(utterance.path.is_file() for utterance in lost)
    shown = ", ".join(utterance.name for utterance in lost[:_SHOWN]) + (", ..." if count > _SHOWN else "")
    found = f"{count} of {total} utterances ({shown}), of which {films} are .mp4 alone and {count - films} missing"
    wanted = f"audio, for films are not read; this command extracts it: {extraction(root, '.mp4')}"
    few = count <= max(_SHOWN, _MOST_LOST * total) and utterances
    require(few, f"{str(root)!r} has no audio of {found}", wanted)
    passed_over = f"passed over {found}" if lost else ""
    present = {utterance.label for utterance in utterances}
    return Corpus("meld", utterances, [label for label in LABELS.values() if label in present], passed_over)


def _inside(root: Path, name: str) -> Path | None:
    """Return the file or folder of a name in a folder or in one below it."""
    return next((path for pattern in (name, f"*/{name}") for path in sorted(root.glob(pattern))), None)


def _listed(table: Path, folder: Path, part: str) -> list[Utterance]:
    """Return the utterances of a part, with the film of each that has no audio file."""
    rows = read_table(io.StringIO(decoded(table), newline=""), str(table)).named()
    utterances = []
    for place, cells in rows:
        columns = ("Dialogue_ID", "Utterance_ID", "Speaker", "Emotion")
        dialogue, number, speaker, emotion = (text(cells, column, place) for column in columns)
        known = emotion.lower() in LABELS
        require(known, f"{place}: column 'Emotion' is {emotion!r}", f"one of {', '.join(LABELS)}")
        stem = f"dia{dialogue}_utt{number}"
        path = readable(folder / f"{stem}.mp4")
        utterances.append(Utterance(f"{part}/{stem}", speaker, LABELS[emotion.lower()], path, part=part))
    return utterances

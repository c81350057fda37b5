"""Corpora with one folder per class, or with one per speaker and in it one per class."""

from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.corpora import labels
from ser_fast.data.corpora.detection import mostly, typed
from ser_fast.data.corpora.trees import require_folder, wanted_files
from ser_fast.data.files import printable
from ser_fast.data.utterance import UNKNOWN, Corpus, Utterance

_SHOWN = 4


def folders(root: str | PathLike[str]) -> Corpus:
    """Return the audio files ``root/<label>/<speaker>/**/x.wav`` and ``root/<label>/x.wav``.

    The speaker of the second form is ``"unknown"``. The classes are sorted; those that differ in case only are
    merged. Hidden files and folders are skipped.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: an audio file is outside the class folders, a class folder has none, or the folders are those of
            speakers, of a division or of another level, where the message says what to give instead.
    """
    root = require_folder(root, "a folder of class folders")
    files, others = wanted_files(root, "a folder of class folders")
    inside = [path.relative_to(root) for path in files]
    _refuse_other_levels(root, inside)

    utterances = []
    for path, name in zip(files, inside, strict=True):
        wanted = root / "<label>" / path.name
        require(len(name.parts) > 1, f"audio file {str(path)!r} is in no class folder", repr(str(wanted)))
        speaker = name.parts[1] if len(name.parts) > 2 else UNKNOWN
        utterances.append(Utterance(name.as_posix(), speaker, name.parts[0], path))

    below = {printable(path.name) for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    # Otherwise a class whose files have an unknown suffix would be missing without notice.
    empty = sorted(below.difference(utterance.label for utterance in utterances))
    found = f"root {str(root)!r} has class folders {empty} with no audio file{others and '; '}{others}"
    require(not empty, found, "a folder with one or more of them in each class")
    return _corpus(root, utterances, others)


def speakers(root: str | PathLike[str]) -> Corpus:
    """Return the audio files ``root/<speaker>/<label>/**/x.wav``; classes as for :func:`folders`.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: an audio file is elsewhere.
    """
    wanted = "a folder of SPEAKER/LABEL/*.wav"
    root = require_folder(root, wanted)
    files, others = wanted_files(root, wanted)
    utterances = []
    for path in files:
        name = path.relative_to(root)
        found = f"audio file {str(path)!r} is not in the folders of a speaker and a label"
        require(len(name.parts) > 2, found, wanted)
        utterances.append(Utterance(name.as_posix(), name.parts[0], name.parts[1], path))
    return _corpus(root, utterances, others)


def _corpus(root: Path, utterances: list[Utterance], others: str) -> Corpus:
    utterances, notes = labels.merge_spellings(utterances)
    classes = sorted({utterance.label for utterance in utterances})
    return Corpus(root.resolve().name, utterances, classes, others, notes)


def _refuse_other_levels(root: Path, inside: list[Path]) -> None:
    """Raise ``ValueError`` if the first folders below ``root`` are not classes, and name what to give instead."""
    levels = [sorted({path.parts[depth] for path in inside if len(path.parts) > depth + 1}) for depth in range(3)]
    first, second, third = levels
    if not first or labels.mostly(first, labels.is_emotion):
        return
    found = f"root {str(root)!r}: its folders, which would be the classes, are {_shown(first)}"
    table = "a manifest, a .csv with the columns file,speaker,label: --data=FILE.csv"
    deeper = next((depth for depth in (1, 2) if levels[depth] and labels.mostly(levels[depth], labels.is_emotion)), 0)
    known = mostly(inside)
    products = labels.speakers_in_classes(first)
    if known:
        fault = f"but most files are those of {known}; type {typed(f'{known}:', root)}"
    elif deeper and len(first) == 1:
        fault = f"and the emotions are below it; type {typed('', root / first[0])}"
    elif labels.mostly(first, labels.is_part):
        one = typed("", root / first[0])
        fault = f"the parts of a division; type {one} for one of them, or write {table}, with a column part"
    elif deeper == 1:
        fault = f"but those in them are emotions ({_shown(second)}); type {typed('speakers:', root)}"
    elif deeper == 2:
        fault = f"but emotions are two levels below ({_shown(third)}); write {table}"
    elif products:
        fault = f"with the speakers {_shown(products)}; move the files to EMOTION/SPEAKER/*.wav, or write {table}"
    elif len(first) > 1 and labels.mostly(first, labels.is_speaker):
        fault = f"which look like speakers; write {table}"
    else:
        return
    raise ValueError(f"{found}, {fault}")


def _shown(names: list[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")

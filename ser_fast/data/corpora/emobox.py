"""EmoBox: Z. Ma, M. Chen, H. Zhang, Z. Zheng, W. Chen, X. Li, J. Ye, X. Chen and T. Hain, "EmoBox: Multilingual
Multi-corpus Speech Emotion Recognition Toolkit and Benchmark", Interspeech 2024."""

import json
import os
import re
from os import PathLike
from pathlib import Path
from typing import Any

from ser_fast._require import require
from ser_fast.data.corpora.manifest import read_jsonl
from ser_fast.data.corpora.rows import empty, optional_seconds, text
from ser_fast.data.corpora.trees import extraction, quoted, readable, refuse, repeated, require_folder
from ser_fast.data.files import AUDIO_SUFFIXES
from ser_fast.data.utterance import PARTS, UNKNOWN, Corpus, Utterance

_WANTED = "CORPUS with CORPUS.jsonl, label_map.json and fold_K/CORPUS_{train,test}_fold_K.jsonl, as EmoBox has it"
# The metadata name no speakers; these corpora do in the paths of their files. EMNS, Emozionalmente, M3ED, MELD,
# MER2023, MESD, MSP-Podcast, PAVOQUE and RESD do not.
_SPEAKERS = {
    "aesdd": r"/\w+ \(0*(\d+)\)",
    "ased": r"-(\d\d)\.\w+$",
    "asvpesd": r"/(?:\d+-){5}(\d+)-",
    "cafe": r"/(\d\d)-",
    "casia": r"/(\w+)/\w+/\d+\.\w+$",
    "cremad": r"/(\d{4})_",
    "emodb": r"/(\d\d)[a-z]\d\d[A-Z][a-z]\.",
    "emovdb": r"/([a-z]+)_[A-Z][a-z]+/",
    "emovo": r"-([fm]\d)-",
    "enterface": r"/(s)_?(\d+)_",
    "esd": r"/(\d{4})_\d+\.",
    "iemocap": r"/(Ses\d\d)[FM]_\w+_([FM])\w+\.",
    "jlcorpus": r"/((?:fe)?male\d)_",
    "mead": r"/([MW]\d{3})/",
    "oreau": r"/(\d\d)[a-z]\d\d[A-Z][a-z]\.",
    "polish": r"/([fm]\d)\.",
    "ravdess": r"-(\d\d)\.\w+$",
    "savee": r"/([A-Z]{2})_[a-z]+\d+\.",
    "shemo": r"/([FM]\d\d)[A-Z]\d\d\.",
    "subesco": r"/([FM]_\d\d)_",
    "tess": r"/([OY]AF?)_",
    "turevdb": r"/(\d+)_",
    "urdu": r"/(S[FM]\d+)_",
}
_SHOWN = 3


def emobox(root: str | PathLike[str]) -> Corpus:
    """Return a corpus by the metadata of EmoBox, with the folds of EmoBox as its own.

    The labels are those of ``label_map.json``. The speaker is that of the lines or of the paths of the files, where
    they name one, else ``"unknown"``: of the 32 corpora 9 name none. The audio is ``wav`` of each line, such as
    ``downloads/emodb/wav/03a01Wa.wav``, below ``root`` or one of the three folders above it; the first folders of the
    path may be missing there. In place of a film there may be a WAV or other audio file of its name. ``start_time``
    and ``end_time`` are seconds. A line with the audio of an earlier one is left out; PAVOQUE has 119.

    Args:
        root: the folder of the corpus's metadata, such as ``EmoBox/data/emodb``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: a table is missing or malformed, a fold names an unknown utterance, or the audio is not found.
    """
    root = require_folder(root, _WANTED).resolve()
    name = root.name
    table = _rows(root / f"{name}.jsonl")
    numbers = sorted(
        int(path.name[5:]) for path in root.glob("fold_*") if re.fullmatch(r"fold_[0-9]{1,4}", path.name)
    )
    good = bool(numbers) and numbers == list(range(1, len(numbers) + 1))
    require(good, f"{str(root)!r} has the folds {numbers}", f"fold_1, fold_2 and so on: {_WANTED}")
    folds = [_fold(root, number, table) for number in numbers]
    named = _label_map(root / "label_map.json")
    files = _located(root, {key: text(row, "wav", place) for key, (place, row) in table.items()})
    utterances, seen, again = [], set(), []
    for key, (place, row) in table.items():
        label = text(row, "emo", place)
        known = not named or label.casefold() in named
        require(known, f"{place}: column 'emo' is {label!r}", f"one of {', '.join(named)}, as in label_map.json")
        start, end = (optional_seconds(row, column, place) for column in ("start_time", "end_time"))
        good = end is None or end > (start or 0.0)
        require(good, f"{place}: column 'end_time' is {end}", f"more than start_time, {start or 0.0}")
        if (files[key], start, end) in seen:
            again.append(key)
            continue
        seen.add((files[key], start, end))
        parts = tuple(fold.get(key, "") for fold in folds)
        speaker = _speaker(name, row, place)
        utterances.append(
            Utterance(key, speaker, named.get(label.casefold(), label), files[key], start, end, folds=parts)
        )
    shown = ", ".join(again[:_SHOWN]) + (", ..." if len(again) > _SHOWN else "")
    notes = (f"left out {len(again)} lines with the audio of an earlier one ({shown})",) if again else ()
    return Corpus(name, utterances, sorted({utterance.label for utterance in utterances}), notes=notes)


def _rows(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return place and content of each line of a table by its key."""
    require(path.is_file(), f"{str(path)!r} is not an existing file", _WANTED)
    rows = [(text(row, "key", place), (place, row)) for place, row in read_jsonl(path)]
    twice = repeated([key for key, _ in rows])
    require(
        not twice, f"{str(path)!r} has the key {', '.join(twice[:3])} more than once", "a table of different keys"
    )
    require(bool(rows), f"{str(path)!r} lists 0 utterances", "a table of at least one")
    return dict(rows)


def _fold(root: Path, number: int, known: dict[str, Any]) -> dict[str, str]:
    """Return the part of each key in a fold."""
    found: dict[str, str] = {}
    for part in PARTS:
        path = root / f"fold_{number}" / f"{root.name}_{part}_fold_{number}.jsonl"
        if part == "valid" and not path.is_file():
            continue
        for key, (place, _) in _rows(path).items():
            require(key in known, f"{place}: column 'key' is {key!r}", f"a key of {root.name}.jsonl")
            require(key not in found, f"{place}: {key!r} is in the parts {found.get(key)} and {part}", "in one part")
            found[key] = part
    return found


def _label_map(path: Path) -> dict[str, str]:
    """Return the class of each label in lower case; empty if there is no map."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; it must be a JSON object of labels and classes") from error
    good = isinstance(found, dict) and all(isinstance(name, str) and not empty(name) for name in found.values())
    require(good, f"{path}: value is {quoted(found)}", "a JSON object of labels and classes")
    return {label.casefold(): name for label, name in found.items()}  # Emo-DB's map has Neutral for neutral


def _located(root: Path, wanted: dict[str, str]) -> dict[str, Path]:
    """Return the file of each key, all below one folder and without the same number of first folders.

    Raises:
        ValueError: the audio of the first key, or of others in the place of the first, is not found.
    """
    first = Path(next(iter(wanted.values()))).parts
    places = [(base, drop) for drop in range(max(1, len(first) - 1)) for base in (root, *root.parents[:3])]
    place = next(((base, drop) for base, drop in places if readable(base.joinpath(*first[drop:])).is_file()), None)
    allowed = f"there; link the folder of the downloads, such as {root.parent.parent / first[0]}"
    found = f"the audio {'/'.join(first)} is neither below {str(root)!r} nor below the three folders above it"
    require(place is not None, found, allowed)
    files = {key: readable(place[0].joinpath(*Path(name).parts[place[1] :])) for key, name in wanted.items()}
    missing = [wanted[key] for key, file in files.items() if not file.is_file()]
    refuse(missing, place[0], "missing", "all of the corpus")
    films = {wanted[key]: file for key, file in files.items() if file.suffix.lower() not in AUDIO_SUFFIXES}
    if films:
        folder, suffix = os.path.commonpath([file.parent for file in films.values()]), Path(min(films)).suffix
        command = extraction(Path(folder), suffix)
        refuse(list(films), place[0], "that are not read", f"audio; this command writes it beside them: {command}")
    return files


def _speaker(name: str, row: dict[str, Any], place: str) -> str:
    if not empty(row.get("speaker")):
        return text(row, "speaker", place)
    found = re.search(_SPEAKERS[name], f"/{row['wav']}") if name in _SPEAKERS else None
    return "".join(found.groups()) if found else UNKNOWN

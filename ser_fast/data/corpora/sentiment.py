"""CH-SIMS and MOSI: video clips with a sentiment value, listed in one ``label.csv``.

CH-SIMS: W. Yu, H. Xu, F. Meng, Y. Zhu, Y. Ma, J. Wu, J. Zou and K. Yang, "CH-SIMS: a Chinese multimodal sentiment
analysis dataset with fine-grained annotation of modality", ACL 2020.
MOSI: A. Zadeh, R. Zellers, E. Pincus and L.-P. Morency, "Multimodal sentiment intensity analysis in videos",
IEEE Intelligent Systems 31(6), 2016.
"""

import csv
import io
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.corpora.trees import extraction, quoted, refuse, require_folder
from ser_fast.data.utterance import PARTS, Corpus, Utterance

_COLUMNS = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")
_NEEDED = ("video_id", "clip_id", "label", "mode")
_BESIDE = "Raw/{video}/{clip}.wav"
_SEGMENT = "Raw/Audio/WAV_16000/Segmented/{video}_{clip}.wav"
_WANTED = "label.csv and Raw/VIDEO/CLIP.mp4, which https://github.com/thuiar/MMSA links"


def ch_sims(root: str | PathLike[str]) -> tuple[Corpus, dict[str, int]]:
    """Return CH-SIMS with its multimodal label, -1 (negative) to 1, and its own parts; all clips are used.

    The speakers are unknown: the id of the video serves as speaker, and one person may speak in several videos.

    Args:
        root: the folder of ``label.csv`` and ``Raw/VIDEO/CLIP.mp4``, with a ``CLIP.wav`` beside or instead of each.

    Returns:
        The corpus and an empty dict of utterances left out.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: ``label.csv`` is missing or malformed, or audio is missing; the message then contains the command
            that extracts it from the videos.
    """
    return _read("ch_sims", root, 1.0, _BESIDE)


def mosi(root: str | PathLike[str]) -> tuple[Corpus, dict[str, int]]:
    """Return CMU-MOSI with its sentiment, -3 (negative) to 3, and its own parts; all clips are used.

    Args:
        root: as for :func:`ch_sims`, with MOSI's ``label.csv``; the audio may also be CMU's segments,
            ``Raw/Audio/WAV_16000/Segmented/VIDEO_CLIP.wav``.

    Returns:
        As :func:`ch_sims`.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: as for :func:`ch_sims`.
    """
    return _read("mosi", root, 3.0, _BESIDE, _SEGMENT)


def _read(name: str, root: str | PathLike[str], limit: float, *patterns: str) -> tuple[Corpus, dict[str, int]]:
    wanted = f"the folder of {name}'s {_WANTED}"
    root = require_folder(root, wanted)
    utterances, silent = [], []
    for video, clip, value, part in _rows(root / "label.csv", limit, wanted):
        # A spreadsheet turns the clip 0001 into 1.
        clips = (clip, clip.zfill(4))
        paths = [root / pattern.format(video=video, clip=one) for pattern in patterns for one in clips]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            silent.append(f"{video}/{clip}")
        else:
            utterances.append(Utterance(f"{video}/{clip}", video, "", path, value=value, part=part))
    command = extraction(root / "Raw", ".mp4")
    places = " or ".join(pattern.format(video="VIDEO", clip="CLIP") for pattern in patterns)
    refuse(silent, root, "without audio", f"a folder with {places} for each; this command extracts them: {command}")
    return Corpus(name, utterances, [], sentiment_scale=limit), {}


def _rows(path: Path, limit: float, wanted: str) -> Iterator[tuple[str, str, float, str]]:
    """Yield video, clip, value and part of every row."""
    require(path.is_file(), f"root {str(path.parent)!r} holds no label.csv", wanted)
    # The column of texts, which is not used, is not always UTF-8.
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    # CH-SIMS is released with and without a header.
    columns = None if "video_id" in text.partition("\n")[0] else _COLUMNS
    reader = csv.DictReader(io.StringIO(text, newline=""), columns, strict=True)
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            whole = None not in row and all(row.get(column) for column in _NEEDED)
            cells = f"cells for {', '.join(reader.fieldnames)}, of which {', '.join(_NEEDED)} are not empty"
            require(whole, f"{place}: {quoted(list(row.values()))}", cells)
            require(row["mode"] in PARTS, f"{place}: mode is {quoted(row['mode'])}", f"one of {', '.join(PARTS)}")
            yield row["video_id"], row["clip_id"], _value(row["label"], limit, place), row["mode"]
    except csv.Error as error:
        # line_num is that of the last good row.
        place = f"{path}, line {reader.line_num + 1}"
        raise ValueError(f"{place}: {error}; it must be comma-separated values") from error


def _value(text: str, limit: float, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(abs(value) <= limit, f"{place}: label is {quoted(text)}", f"a number from {-limit:g} to {limit:g}")
    return value

"""IEMOCAP: C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, J. N. Chang, S. Lee and S. S. Narayanan,
"IEMOCAP: interactive emotional dyadic motion capture database", Language Resources and Evaluation 42(4), 2008."""

import math
import re
from collections import Counter
from os import PathLike
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.corpora.trees import quoted, refuse, require_folder
from ser_fast.data.utterance import Corpus, Utterance

LABELS = {"ang": "anger", "hap": "happiness", "neu": "neutral", "sad": "sadness"}
_OTHERS = {
    "exc": "excitement",
    "fru": "frustration",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "another emotion",
    "xxx": "no agreement of the annotators",
}

# The last part of a turn's name begins with the gender of the speaker; the letter in the first part is that of the
# person who wears the markers.
_TURN = re.compile(
    r"\[[\d.]+ - [\d.]+\]\s+"
    r"(?P<turn>(?P<dialog>(?P<session>Ses\d\d)[FM]_(?P<kind>impro|script)\w+)_(?P<gender>[FM])\w+)\s+"
    r"(?P<emotion>[a-z]{3})\s+\[(?P<values>.+)\]\s*"
)
VALUES = ("valence", "arousal", "dominance")  # means over the annotators, on a scale from 1 to 5
_WANTED = (
    "IEMOCAP_full_release with SessionN/dialog/EmoEvaluation/*.txt and SessionN/sentences/wav/DIALOG/TURN.wav, "
    "licensed by https://sail.usc.edu/iemocap"
)


def iemocap(
    root: str | PathLike[str],
    excited_as_happy: bool = False,
    improvised_only: bool = False,
    all_turns: bool = False,
) -> tuple[Corpus, dict[str, int]]:
    """Return IEMOCAP's anger, happiness, neutral and sadness, and the number of turns left out for each reason.

    The label is the one that the annotators agreed on. 4 490 of the 10 039 turns have one of the four labels, 1 041
    more with ``excited_as_happy``. A speaker is named by session and gender, such as ``Ses01F``. The group is the
    session, such as ``Ses01``, whose two speakers talk to each other; one group left out is leave-one-session-out.
    The ``values`` of an utterance are its valence, arousal (which the release calls activation) and dominance from 1
    to 5, means over the annotators.

    Args:
        root: ``IEMOCAP_full_release``.
        excited_as_happy: count excitement as happiness, as much of the literature does.
        improvised_only: leave out the scripted dialogs, whose texts reveal the emotion.
        all_turns: keep the turns of other emotions, and those without agreement, under labels of their own; models of
            the ratings are trained on all of them.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: the layout is not that of the release, a line of a turn is malformed, or audio is missing.
    """
    root = require_folder(root, _WANTED)
    # The release also holds the "._" files of a macOS archiver.
    tables = sorted(path for path in root.glob("Session*/dialog/EmoEvaluation/*.txt") if path.name[0] != ".")
    require(bool(tables), f"root {str(root)!r} holds no Session*/dialog/EmoEvaluation/*.txt", _WANTED)

    labels = (_OTHERS if all_turns else {}) | LABELS | ({"exc": "happiness"} if excited_as_happy else {})
    utterances, left_out = [], Counter()
    for table in tables:
        for turn in _turns(table):
            if improvised_only and turn["kind"] == "script":
                left_out["scripted"] += 1
            elif turn["emotion"] not in labels:
                left_out[_OTHERS[turn["emotion"]]] += 1
            else:
                path = table.parents[2] / "sentences" / "wav" / turn["dialog"] / f"{turn['turn']}.wav"
                speaker = turn["session"] + turn["gender"]
                label, session = labels[turn["emotion"]], turn["session"]
                values = dict(zip(VALUES, _numbers(turn["values"])))
                utterances.append(Utterance(turn["turn"], speaker, label, path, group=session, values=values))
    missing = [
        utterance.path.relative_to(root).as_posix() for utterance in utterances if not utterance.path.is_file()
    ]
    refuse(missing, root, "missing", _WANTED)
    order = [*LABELS.values(), *_OTHERS.values()]
    present = {utterance.label for utterance in utterances}
    return Corpus("iemocap", utterances, [label for label in order if label in present]), left_out


def _turns(table: Path) -> list[re.Match]:
    turns = []
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.startswith("["):  # votes of single annotators, below each turn
            continue
        turn = _TURN.fullmatch(line)
        good = turn is not None and turn["emotion"] in {**LABELS, **_OTHERS}
        wanted = "[START - END], the turn, the emotion's three letters and [V, A, D]"
        require(good, f"{table}, line {number}: {quoted(line)}", wanted)
        found = f"{table}, line {number}: [V, A, D] is [{turn['values']}]"
        require(len(_numbers(turn["values"])) == len(VALUES), found, "three finite numbers, separated by commas")
        turns.append(turn)
    return turns


def _numbers(text: str) -> list[float]:
    """Return the numbers between the commas; none if one of them is not finite."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []

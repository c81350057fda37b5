"""IEMOCAP: C. Busso, M. Bulut, C.-C. Lee, A. Kazemzadeh, E. Mower, S. Kim, J. N. Chang, S. Lee and S. S. Narayanan,
"IEMOCAP: interactive emotional dyadic motion capture database", Language Resources and Evaluation 42(4), 2008."""

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
    r"(?P<emotion>[a-z]{3})\s+\[.+\]\s*"
)
_WANTED = (
    "IEMOCAP_full_release with SessionN/dialog/EmoEvaluation/*.txt and SessionN/sentences/wav/DIALOG/TURN.wav, "
    "licensed by https://sail.usc.edu/iemocap"
)


def iemocap(
    root: str | PathLike[str], excited_as_happy: bool = False, improvised_only: bool = False
) -> tuple[Corpus, dict[str, int]]:
    """Return IEMOCAP's anger, happiness, neutral and sadness, and the number of turns left out for each reason.

    The label is the one that the annotators agreed on. 4 490 of the 10 039 turns have one of the four labels, 1 041
    more with ``excited_as_happy``. A speaker is named by session and gender, such as ``Ses01F``. The group is the
    session, such as ``Ses01``, whose two speakers talk to each other; one group left out is leave-one-session-out.

    Args:
        root: ``IEMOCAP_full_release``.
        excited_as_happy: count excitement as happiness, as much of the literature does.
        improvised_only: leave out the scripted dialogs, whose texts reveal the emotion.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: the layout is not that of the release, a line of a turn is malformed, or audio is missing.
    """
    root = require_folder(root, _WANTED)
    # The release also holds the "._" files of a macOS archiver.
    tables = sorted(path for path in root.glob("Session*/dialog/EmoEvaluation/*.txt") if path.name[0] != ".")
    require(bool(tables), f"root {str(root)!r} holds no Session*/dialog/EmoEvaluation/*.txt", _WANTED)

    labels = {**LABELS, "exc": "happiness"} if excited_as_happy else LABELS
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
                utterances.append(Utterance(turn["turn"], speaker, label, path, group=session))
    missing = [
        utterance.path.relative_to(root).as_posix() for utterance in utterances if not utterance.path.is_file()
    ]
    refuse(missing, root, "missing", _WANTED)
    present = {utterance.label for utterance in utterances}
    return Corpus("iemocap", utterances, [label for label in LABELS.values() if label in present]), left_out


def _turns(table: Path) -> list[re.Match]:
    turns = []
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.startswith("["):  # votes of single annotators, below each turn
            continue
        turn = _TURN.fullmatch(line)
        good = turn is not None and turn["emotion"] in {**LABELS, **_OTHERS}
        wanted = "[START - END], the turn, the emotion's three letters and [V, A, D]"
        require(good, f"{table}, line {number}: {quoted(line)}", wanted)
        turns.append(turn)
    return turns

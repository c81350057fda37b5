"""Conversion of corpora whose labels come in a format of their own to a manifest."""

from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from ser_fast.data.corpora.iemocap import iemocap
from ser_fast.data.corpora.manifest import manifest, write_manifest
from ser_fast.data.corpora.sentiment import ch_sims, mosi
from ser_fast.data.utterance import PARTS, Corpus

_READERS = {"iemocap": iemocap, "ch_sims": ch_sims, "mosi": mosi}


class Conversion(NamedTuple):
    """A converted corpus and a description of it.

    Attributes:
        corpus: the corpus as :func:`ser_fast.data.corpora.load_corpus` reads the manifest.
        title: name of the corpus that was read.
        header: column names of the table.
        rows: utterances and speakers of each class or part, and of all.
        notes: sentences about speakers in several parts, utterances left out and the manifest's path.
    """

    corpus: Corpus
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def convert(
    corpus: Literal["iemocap", "ch_sims", "mosi"],
    path: Path,
    out: Path,
    excited_as_happy: bool = False,
    improvised_only: bool = False,
    all_turns: bool = False,
) -> Conversion:
    """Write a corpus as a manifest and return it with a description of its contents.

    Args:
        corpus: the corpus whose labels are read.
        path: its folder as released.
        out: the manifest, a ``.csv`` that does not exist yet; audio below its folder gets a relative path.
        excited_as_happy: IEMOCAP only: count excitement as happiness, as much of the literature does.
        improvised_only: IEMOCAP only: leave out the scripted dialogs, whose texts reveal the emotion.
        all_turns: IEMOCAP only: keep the turns of all emotions, not of four, for models of the ratings.

    Returns:
        The corpus as read back from the manifest, a table of its contents, and notes. The manifest of IEMOCAP also
        has the columns ``valence``, ``arousal`` and ``dominance``.

    Raises:
        ValueError: ``out`` is not a new ``.csv``, an option of another corpus is set, or the reader raises it.
        OSError: a file cannot be read, or ``out`` cannot be written. No manifest has been written then.
    """
    if out.suffix.lower() != ".csv":
        raise ValueError(f"out is {str(out)!r}; it must be a .csv file")
    if out.exists():
        raise ValueError(f"out is {str(out)!r}, which exists; it must be a new file")
    if corpus not in _READERS:
        raise ValueError(f"corpus is {corpus!r}; it must be one of {', '.join(_READERS)}")
    given = {"excited_as_happy": excited_as_happy, "improvised_only": improvised_only, "all_turns": all_turns}
    if corpus != "iemocap" and any(given.values()):
        name = next(name for name, value in given.items() if value)
        raise ValueError(f"{name} is True, but the corpus is {corpus}; omit it")

    found, left_out = _READERS[corpus](path, **(given if corpus == "iemocap" else {}))
    if not found.utterances:
        raise ValueError(f"{corpus} of {str(path)!r} has 0 utterances; it must have at least one")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(found, out)
    header, rows = _table(found)
    return Conversion(manifest(out), found.name, header, rows, [*_notes(found, left_out), f"manifest: {out}"])


def _table(corpus: Corpus) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: utterances and speakers of each class, or of each part without classes."""
    group = "label" if corpus.classes else "part"
    groups = [(name, [u for u in corpus.utterances if getattr(u, group) == name]) for name in corpus.classes or PARTS]
    rows = [[name, str(len(members)), str(len({u.speaker for u in members}))] for name, members in groups]
    rows.append(["all", str(len(corpus.utterances)), str(len(corpus.speakers))])
    return [group, "utterances", "speakers"], rows


def _notes(corpus: Corpus, left_out: dict[str, int]) -> list[str]:
    notes = []
    parts = defaultdict(set)
    for utterance in corpus.utterances:
        parts[utterance.speaker].add(utterance.part)
    shared = sum(len(names) > 1 for names in parts.values())
    if shared:
        notes.append(f"{shared} of {len(parts)} speakers are in more than one part")
    if left_out:
        most_first = sorted(left_out.items(), key=lambda item: -item[1])
        notes.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in most_first))
    values = list(dict.fromkeys(name for utterance in corpus.utterances for name in utterance.values))
    if values:
        notes.append(f"further columns, which --targets={','.join(values)} predicts: {', '.join(values)}")
    return notes

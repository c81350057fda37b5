"""Corpora whose labels lie in files of their own form, written down as a manifest once."""

from collections import defaultdict
from pathlib import Path
from typing import Literal

from ser_fast.data.corpora.iemocap import iemocap
from ser_fast.data.corpora.manifest import manifest, write_manifest
from ser_fast.data.corpora.sentiment import ch_sims, mosi
from ser_fast.data.corpora.utterance import PARTS, Corpus
from ser_fast.reports.terminal import print_table, say

_READERS = {"iemocap": iemocap, "ch_sims": ch_sims, "mosi": mosi}


def convert(
    corpus: Literal["iemocap", "ch_sims", "mosi"],
    path: Path,
    out: Path,
    excited_as_happy: bool = False,
    improvised_only: bool = False,
) -> Corpus:
    """Write a corpus as a manifest and print what is in it and what was left out.

    Args:
        corpus: whose labels to read.
        path: its folder as its owners ship it.
        out: the manifest, a ``.csv`` that does not exist yet; audio below its folder is named relative to it.
        excited_as_happy: of IEMOCAP, count excitement as happiness, as much of the literature does.
        improvised_only: of IEMOCAP, leave out the scripted dialogs, whose texts tell the emotion.

    Returns:
        The corpus as :func:`ser_fast.data.corpora.load_corpus` reads the manifest.

    Raises:
        ValueError: ``out`` is not a new ``.csv``, an option of another corpus is set, or as the corpus' own reader.
        OSError: as the corpus' own reader, or ``out`` cannot be written. Nothing has been written then.
    """
    if out.suffix.lower() != ".csv":
        raise ValueError(f"out is {str(out)!r}; it must be a .csv file")
    if out.exists():
        raise ValueError(f"out is {str(out)!r}, which exists; it must be a new file")
    if corpus not in _READERS:
        raise ValueError(f"corpus is {corpus!r}; it must be one of {', '.join(_READERS)}")
    given = {"excited_as_happy": excited_as_happy, "improvised_only": improvised_only}
    if corpus != "iemocap" and any(given.values()):
        name = next(name for name, value in given.items() if value)
        raise ValueError(f"{name} is True, but the corpus is {corpus}; it must be left out")

    found, left_out = _READERS[corpus](path, **(given if corpus == "iemocap" else {}))
    if not found.utterances:
        raise ValueError(f"{corpus} of {str(path)!r} has 0 utterances; it must have at least one")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(found, out)
    _tell(found, left_out)
    say(f"manifest: {out}")
    return manifest(out)


def _tell(corpus: Corpus, left_out: dict[str, int]) -> None:
    group = "label" if corpus.classes else "part"
    groups = [(name, [u for u in corpus.utterances if getattr(u, group) == name]) for name in corpus.classes or PARTS]
    rows = [[name, str(len(members)), str(len({u.speaker for u in members}))] for name, members in groups]
    rows.append(["all", str(len(corpus.utterances)), str(len(corpus.speakers))])
    print_table(corpus.name, [group, "utterances", "speakers"], rows)
    parts = defaultdict(set)
    for utterance in corpus.utterances:
        parts[utterance.speaker].add(utterance.part)
    shared = sum(len(names) > 1 for names in parts.values())
    if shared:
        say(f"{shared} of {len(parts)} speakers are in more than one part")
    if left_out:
        most_first = sorted(left_out.items(), key=lambda item: -item[1])
        say("left out: " + ", ".join(f"{count} {reason}" for reason, count in most_first))

"""Corpora made of corpora: with other labels, or with the test part from another corpus."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ser_fast._require import require
from ser_fast.data.corpora.labels import map_labels
from ser_fast.data.utterance import Corpus


def relabelled(corpus: Corpus, given: Mapping[str, str | None]) -> Corpus:
    """Return a corpus with merged, renamed or left out classes, and a note that counts them.

    The classes keep the order in which the corpus has the first label of each.

    Args:
        corpus: a corpus of classes.
        given: the class of each label, None to leave its utterances out; labels that are not in it keep their names.

    Raises:
        ValueError: the corpus has values, lacks one of the labels, or no utterance is left.

    Example:
        >>> from ser_fast.data.corpora import Utterance
        >>> both = [Utterance("a", "s", "calm"), Utterance("b", "s", "bored"), Utterance("c", "s", "angry")]
        >>> found = relabelled(Corpus("x", both, ["angry", "bored", "calm"]), {"bored": "calm", "angry": None})
        >>> found.classes, found.notes
        (['calm'], ('counted bored as calm; left out angry (1)',))
    """
    _refuse_values(corpus)
    classes = list(dict.fromkeys(given.get(label, label) for label in corpus.classes))
    classes = [name for name in classes if name is not None]
    return _mapped(corpus, map_labels([u.label for u in corpus.utterances], classes, given), classes)


def joined(corpus: Corpus, test: Corpus, given: Mapping[str, str | None]) -> Corpus:
    """Return a corpus whose test part is another corpus.

    The test part is the test part of ``test``, or all of it without parts. The training and validation parts are
    those of ``corpus``, whose own test part is left out. A speaker's name that both have gets the name of the test
    corpus in front, as the speakers are taken for different ones.

    Args:
        corpus: the corpus to train on, with its final classes.
        test: the corpus to test on; it may lack some of the classes.
        given: the class of each label of ``test`` among those of ``corpus``, None to leave its utterances out; other
            labels keep their names.

    Raises:
        ValueError: only one of them has classes, a label of ``test`` has no class, they share a file, their values
            are of different names or scales, or a part is empty.
    """
    if bool(corpus.classes) != bool(test.classes):
        has, lacks = ("values", "classes") if corpus.classes else ("classes", "values")
        raise ValueError(
            f"test_data is {test.name}, which has {has}; it must have {lacks}, as data, {corpus.name}, has"
        )
    found = f"test_data is {test.name}, of the targets {', '.join(test.targets)}"
    require(corpus.targets == test.targets, found, f"of those of data, {corpus.name}: {', '.join(corpus.targets)}")
    same = corpus.sentiment_scale == test.sentiment_scale
    found = f"test_data is {test.name}, of the sentiment_scale {test.sentiment_scale:g}"
    require(same, found, f"of that of data, {corpus.name}, which is {corpus.sentiment_scale:g}")
    if corpus.classes:
        labels = [utterance.label for utterance in test.utterances]
        mapped = map_labels(labels, corpus.classes, given, option="test_data", other=f"the corpus {corpus.name}")
        test = _mapped(test, mapped, corpus.classes)
    whole = all(utterance.part is None for utterance in test.utterances)
    tested = [utterance for utterance in test.utterances if whole or utterance.part == "test"]
    trained = [utterance for utterance in corpus.utterances if utterance.part != "test"]
    for name, part in (("data", trained), ("test_data", tested)):
        require(bool(part), f"{name} leaves 0 utterances", "a corpus, or a part of one, with some")
    known = {utterance.speaker for utterance in trained}
    # The folds of one corpus do not divide both. Where one has groups, the other is a group of its own.
    group = None if trained[0].group is None else test.name
    trained = [replace(one, part=one.part or "train", folds=()) for one in trained]
    tested = [
        replace(
            one, part="test", group=group, folds=(),
            speaker=f"{test.name}/{one.speaker}" if one.speaker in known else one.speaker,
        )
        for one in tested
    ]  # fmt: skip
    count, number = len({one.speaker for one in tested}), len(tested)
    of = "" if whole else " of its test part"
    unused = len(corpus.utterances) - len(trained)
    notes = [
        *corpus.notes,
        f"test part: {number} utterances{of} of {test.name}, {count} speaker{'' if count == 1 else 's'}",
        *([f"left out {unused} utterances of the test part of {corpus.name}"] if unused else []),
        *(f"{test.name}: {note}" for note in test.notes),
    ]
    passed_over = "; ".join(filter(None, (corpus.passed_over, test.passed_over)))
    utterances = [*trained, *tested]
    try:
        return replace(
            corpus, utterances=utterances, notes=tuple(notes), passed_over=passed_over, test_data=test.name
        )
    except ValueError as error:
        raise ValueError(f"test_data is {test.name}, which does not fit data, {corpus.name}: {error}") from error


def _refuse_values(corpus: Corpus) -> None:
    if not corpus.classes:
        raise ValueError(f"labels is given, but data, {corpus.name}, has values, not classes; omit it")


def _mapped(corpus: Corpus, mapped: dict[str, str | None], classes: list[str]) -> Corpus:
    """Return the utterances that have a class, under its name, and a note on the labels that changed."""
    kept = [replace(u, label=mapped[u.label]) for u in corpus.utterances if mapped[u.label] is not None]
    require(bool(kept), f"labels leaves 0 utterances of {corpus.name}", "a map that leaves some")
    note = described_map(mapped, Counter(utterance.label for utterance in corpus.utterances))
    return replace(corpus, utterances=kept, classes=classes, notes=(*corpus.notes, *([note] if note else [])))


def described_map(mapped: Mapping[str, str | None], counts: Mapping[str, int]) -> str:
    """Return a phrase with the labels that are renamed or left out, ``""`` if there are none.

    Args:
        mapped: class of each label, None to leave it out.
        counts: number of utterances of each label.

    Example:
        >>> described_map({"angry": "anger", "calm": None, "sad": "sad"}, {"calm": 3})
        'counted angry as anger; left out calm (3)'
    """
    renamed = [f"{label} as {name}" for label, name in mapped.items() if name not in (None, label)]
    lost = [f"{label} ({counts[label]})" for label, name in sorted(mapped.items()) if name is None]
    said = [("counted", renamed), ("left out", lost)]
    return "; ".join(f"{verb} {', '.join(found)}" for verb, found in said if found)

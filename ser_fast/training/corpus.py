"""The corpus of a run: loaded, with the labels of its map, and joined with a corpus for the test."""

from ser_fast._require import require
from ser_fast.data.corpora import Corpus, load_corpus, takes_columns
from ser_fast.data.corpora.combined import joined, relabelled
from ser_fast.training.config import TrainConfig


def corpus_of(config: TrainConfig) -> Corpus:
    """Return the corpus of a run: that of ``data``, with other labels and a test part from ``test_data`` if given.

    Args:
        config: options of a run; ``data``, ``columns``, ``labels``, ``test_data`` and ``targets`` count.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a corpus is malformed, the map names a label that none of the corpora has, or the corpora do not
            fit each other.
    """
    corpus = _load(config, config.data)
    test = _load(config, config.test_data) if config.test_data else None
    if not config.labels and test is None:
        return corpus
    own = {utterance.label for utterance in corpus.utterances}
    others = {utterance.label for utterance in test.utterances} if test is not None else set()
    if corpus.classes:
        for label in config.labels:
            allowed = f"a label of the corpus: {', '.join(sorted(own | others))}"
            require(label in own | others, f"labels maps {label!r}", allowed)
    given = {label: name for label, name in config.labels.items() if label in own or not corpus.classes}
    if given:
        corpus = relabelled(corpus, given)
    if test is None:
        return corpus
    return joined(corpus, test, {label: name for label, name in config.labels.items() if label in others})


def _load(config: TrainConfig, spec: str) -> Corpus:
    """Return ``data`` or ``test_data``; ``columns`` is for those of them that have columns, and one must."""
    tables = any(map(takes_columns, (config.data, config.test_data)))
    return load_corpus(spec, config.targets, config.columns if takes_columns(spec) or not tables else {})

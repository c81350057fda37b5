"""Results of a cross-validation or an evaluation, with the utterances that they are about."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ser_fast.data.corpora import Corpus
from ser_fast.data.dataset import Dataset
from ser_fast.training.predictions import Prediction


class Predicted(NamedTuple):
    """Utterances that one model was tested on.

    Attributes:
        name: name of the run among others, such as ``seed 0, without 03``; ``""`` if there is one.
        checkpoint: the model.
        index: numbers of the utterances in the dataset.
        predictions: the predictions for them, in this order.
    """

    name: str
    checkpoint: Path
    index: Sequence[int]
    predictions: list[Prediction]


class Results(NamedTuple):
    """Results of all that was tested.

    Attributes:
        summary: the content of ``summary.json``.
        corpus: the utterances that could be read; ``dataset.numbers`` are numbers in it.
        dataset: the utterances as they were tested.
        sample_rate: that of their waves, in hertz.
        tested: the predictions of each model.
    """

    summary: dict
    corpus: Corpus
    dataset: Dataset
    sample_rate: int
    tested: list[Predicted]

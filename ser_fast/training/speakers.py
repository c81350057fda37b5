"""Metrics of each speaker, and intervals over the speakers."""

from collections.abc import Callable, Sequence

import numpy as np

from ser_fast.training import metrics
from ser_fast.training.task import Task


def by_speaker(task: Task, speakers: Sequence[str], truth: Sequence, predicted: Sequence) -> dict:
    """Return the metrics of all utterances and of each speaker, and 95 % intervals over the speakers.

    Utterances of one speaker are alike, so speakers, not utterances, are what is drawn. CCC and correlation of the
    drawn utterances come from the sums of each speaker (``ser_fast.training.metrics.value_sums``). Within a
    speaker both are 0 if the true or the predicted values are constant.

    Args:
        task: defines the metrics.
        speakers: speaker of each utterance.
        truth: class index, or row of values, of each utterance.
        predicted: predicted class index, or row of values, of each utterance.

    Returns:
        ``metrics``; ``per_speaker``, ``utterances``, UA (``recall``, over the classes that the speaker has) and
        ``accuracy``, or ``ccc``, ``mae`` and ``corr``, of each; ``intervals`` of the same measures: ``speakers``, the
        mean of the speakers with its t interval, and ``pooled``, the ``value`` of all utterances with its percentile
        bootstrap over speakers. ``bootstrap`` states its draws and seed. The ends are None for a single speaker. For
        several targets these are means over the targets, and ``per_target`` has ``per_speaker`` and ``intervals`` of
        each.
    """
    shown = ("recall", "accuracy") if task.classes else metrics.AGREEMENT
    members: dict[str, list[int]] = {name: [] for name in sorted(set(speakers))}
    for number, name in enumerate(speakers):
        members[name].append(number)
    whole = task.metrics(truth, predicted)
    own = [task.metrics(*([values[i] for i in index] for values in (truth, predicted))) for index in members.values()]
    sizes = {name: len(index) for name, index in members.items()}
    result = {"metrics": whole, "bootstrap": {"draws": metrics.DRAWS, "seed": metrics.SEED}}
    if task.classes:
        return result | _described(sizes, shown, whole, own, _shares(own))
    values = [task.values(given) for given in (truth, predicted)]
    values = [column - values[0].mean(0) for column in values]
    sums = np.stack([metrics.value_sums(*(column[index] for column in values)) for index in members.values()])
    if task.outputs > 1:
        result["per_target"] = {
            name: _described(
                sizes, shown, whole["per_target"][name], [found["per_target"][name] for found in own],
                _agreement(sums[..., [number]]),
            )
            for number, name in enumerate(task.names)
        }  # fmt: skip
    return result | _described(sizes, shown, whole, own, _agreement(sums))


_Measure = Callable[[np.ndarray], np.ndarray]  # of how often each draw has each speaker, as metrics.bootstrap takes


def _described(
    sizes: dict[str, int], shown: Sequence[str], whole: dict, own: list[dict], pooled: dict[str, _Measure]
) -> dict:
    """Return ``per_speaker`` and ``intervals`` of :func:`by_speaker`."""
    return {
        "per_speaker": {
            name: {"utterances": size} | {measure: found[measure] for measure in shown}
            for (name, size), found in zip(sizes.items(), own)
        },
        "intervals": {
            measure: {
                "speakers": metrics.interval([found[measure] for found in own], *metrics.RANGES[measure]),
                "pooled": {"value": whole[measure]} | metrics.bootstrap(pooled[measure], len(sizes)),
            }
            for measure in shown
        },
    }


def _shares(own: list[dict]) -> dict[str, _Measure]:
    """Return UA and accuracy of draws, from the confusion matrix of each speaker."""
    confusion = np.array([found["confusion"] for found in own])  # [speakers, true, predicted]
    hits, support = confusion.diagonal(axis1=1, axis2=2), confusion.sum(2)
    return {
        "recall": lambda drawn: _mean_recall(drawn @ hits, drawn @ support),
        "accuracy": lambda drawn: drawn @ hits.sum(1) / (drawn @ support.sum(1)),
    }


def _agreement(sums: np.ndarray) -> dict[str, _Measure]:
    """Return CCC, MAE and correlation of draws, means over the targets, from the sums ``[speakers, 7, targets]``."""

    def of(measure: str) -> _Measure:
        return lambda drawn: metrics.of_sums(np.tensordot(drawn, sums, 1))[measure].mean(-1)

    return {measure: of(measure) for measure in metrics.AGREEMENT}


def _mean_recall(hits: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Return the mean recall ``[draws]`` over the classes that each draw has, from counts ``[draws, classes]``."""
    recall = np.divide(hits, support, out=np.zeros(hits.shape), where=support > 0)
    return recall.sum(1) / (support > 0).sum(1)

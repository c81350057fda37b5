"""Metrics of each speaker, and intervals over the speakers."""

from collections.abc import Sequence

import numpy as np

from ser_fast.training import metrics
from ser_fast.training.task import Task


def by_speaker(task: Task, speakers: Sequence[str], truth: Sequence, predicted: Sequence) -> dict:
    """Return the metrics of all utterances and of each speaker, and 95 % intervals over the speakers.

    Utterances of one speaker are alike, so speakers, not utterances, are what is drawn.

    Args:
        task: defines the metrics.
        speakers: speaker of each utterance.
        truth: class index or value of each utterance.
        predicted: predicted class index or value of each utterance.

    Returns:
        ``metrics``; ``per_speaker``, ``utterances``, UA (``recall``, over the classes that the speaker has) and
        ``accuracy``, or ``mae``, of each; ``intervals`` of the same measures: ``speakers``, the mean of the speakers
        with its t interval, and ``pooled``, the ``value`` of all utterances with its percentile bootstrap over
        speakers. ``bootstrap`` states its draws and seed. The ends are None for a single speaker.
    """
    shown = ("recall", "accuracy") if task.classes else ("mae",)
    members: dict[str, list[int]] = {name: [] for name in sorted(set(speakers))}
    for number, name in enumerate(speakers):
        members[name].append(number)
    whole = task.metrics(truth, predicted)
    own = [task.metrics(*([values[i] for i in index] for values in (truth, predicted))) for index in members.values()]
    sizes = np.array([len(index) for index in members.values()])
    if task.classes:
        confusion = np.array([found["confusion"] for found in own])  # [speakers, true, predicted]
        hits, support = confusion.diagonal(axis1=1, axis2=2), confusion.sum(2)
        pooled = {
            "recall": lambda drawn: _mean_recall(drawn @ hits, drawn @ support),
            "accuracy": lambda drawn: drawn @ hits.sum(1) / (drawn @ sizes),
        }
    else:
        errors = sizes * [found["mae"] for found in own]
        pooled = {"mae": lambda drawn: drawn @ errors / (drawn @ sizes)}
    return {
        "metrics": whole,
        "per_speaker": {
            name: {"utterances": int(size)} | {measure: found[measure] for measure in shown}
            for name, size, found in zip(members, sizes, own)
        },
        "intervals": {
            measure: {
                "speakers": metrics.interval([found[measure] for found in own]),
                "pooled": {"value": whole[measure]} | metrics.bootstrap(pooled[measure], len(members)),
            }
            for measure in shown
        },
        "bootstrap": {"draws": metrics.DRAWS, "seed": metrics.SEED},
    }


def _mean_recall(hits: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Return the mean recall ``[draws]`` over the classes that each draw has, from counts ``[draws, classes]``."""
    recall = np.divide(hits, support, out=np.zeros(hits.shape), where=support > 0)
    return recall.sum(1) / (support > 0).sum(1)

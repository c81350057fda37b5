"""Experiments of the attention-CGRU paper."""

import math
import re
import statistics
from pathlib import Path

import numpy as np
import torch

from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora import Utterance
from ser_fast.experiments import figures, published
from ser_fast.experiments.settings import Runner, cross_validate_all
from ser_fast.experiments.tables import Result, Table, holds, over_speakers, percent, spread
from ser_fast.models.cgru import DYNAMIC_RANGE
from ser_fast.nn.power_spectrogram import PowerSpectrogram

POOLED = "The numbers of each emotion are over the predictions of all folds together."
OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam")
RATES = (0.0005, 0.001, 0.005, 0.01)
SHOWN = ("anger", "happiness", "neutral", "sadness")
_EMODB = re.compile(r"[0-9]{2}([a-z][0-9]{2})[A-Z][a-z]")
_RAVDESS = re.compile(r"(?:[0-9]{2}-){4}([0-9]{2})-[0-9]{2}-[0-9]{2}")


def attention(runner: Runner) -> Result:
    """Compare CGRU with and without attention, for each emotion (experiment 1)."""
    found = cross_validate_all(runner, ["CGRU without attention", "CGRU"])
    without, with_it = found.values()
    classes = with_it["classes"]
    measures = {"precision": "precision", "recall": "recall", "f1": "F1"}

    def scores(summary: dict, key: str) -> list[float]:
        return [100 * summary["pooled"]["per_class"][emotion][key] for emotion in classes]

    header = ["emotion", *(f"{name} {part}" for name in measures.values() for part in ("without", "with", "gain"))]
    gains = {key: [b - a for a, b in zip(scores(without, key), scores(with_it, key))] for key in measures}
    rows = []
    for number, emotion in enumerate(classes):
        cells = [
            cell
            for key in measures
            for cell in (
                f"{scores(without, key)[number]:.1f}",
                f"{scores(with_it, key)[number]:.1f}",
                f"{gains[key][number]:+.1f}",
            )
        ]
        paper = published.ATTENTION_GAIN.get(emotion)
        rows.append([emotion, *cells, "above 0, " + (published.NOT_GIVEN if paper is None else f"{paper:+.1f}")])
    means = [
        f"{100 * value:{sign}.1f}"
        for key in measures
        for a, b in [(without["pooled"][key], with_it["pooled"][key])]
        for value, sign in ((a, ""), (b, ""), (b - a, "+"))
    ]
    rows.append(["mean", *means, "above 0, " + published.NOT_GIVEN])
    gained = [f"{sum(gain > 0 for gain in gains[key])} of {len(classes)} in {name}" for key, name in measures.items()]
    most = classes[max(range(len(classes)), key=lambda number: gains["precision"][number])]
    every = all(gain > 0 for values in gains.values() for gain in values)
    fear = f"{gains['precision'][classes.index('fear')]:+.1f}" if "fear" in classes else "the corpus has none"
    series = {name: {"without": scores(without, key), "with": scores(with_it, key)} for key, name in measures.items()}
    title = f"CGRU with and without attention on {with_it['data']}; {with_it['protocol']}"
    return Result(
        Table([*header, "paper: gain of precision"], rows),
        lambda path: figures.attention(path, classes, series,
                                       {name: summary["pooled"]["confusion"] for name, summary in found.items()},
                                       title),
        {"systems": found},
        with_it["protocol"],
        [
            f"Every emotion gains by attention: {holds(every)}. Gaining here: {', '.join(gained)}.",
            f"Fear gains most precision, 8 points in the paper: {holds(most == 'fear')}. Fear: {fear}; most: {most}.",
        ],
        [POOLED, "The experiment `claims` tests whether attention helps, with an interval."],
    )  # fmt: skip


def lstm(runner: Runner) -> Result:
    """Compare F1 of each emotion between CGRU and the LSTM systems (experiment 2)."""
    names = ["LSTM (paper 1)", "Attention-LSTM", "DCNN-LSTM", "CGRU"]
    found = cross_validate_all(runner, names)
    classes, protocol = found["CGRU"]["classes"], found["CGRU"]["protocol"]
    scores = {
        name: [100 * summary["pooled"]["per_class"][emotion]["f1"] for emotion in classes]
        for name, summary in found.items()
    }
    baseline = [statistics.fmean(values) for values in zip(*(scores[name] for name in names[:-1]))]
    shown = scores | {"mean of the LSTMs": baseline}
    paper = "paper: CGRU above the LSTMs' mean"
    rows = [
        [emotion, *(f"{values[number]:.1f}" for values in shown.values()), f"yes, {published.NOT_GIVEN}"]
        for number, emotion in enumerate(classes)
    ]
    means = [f"{100 * found[name]['pooled']['f1']:.1f}" for name in names]
    rows.append(["mean", *means, f"{statistics.fmean(baseline):.1f}", published.NOT_GIVEN])
    above = [emotion for number, emotion in enumerate(classes) if scores["CGRU"][number] > baseline[number]]
    return Result(
        Table(["F1 %", *shown, paper], rows),
        lambda path: figures.bars(path, classes, scores, "F1 (%)", f"F1 on {found['CGRU']['data']}; {protocol}"),
        {"systems": found},
        protocol,
        [f"CGRU's F1 is above the LSTM systems' mean in every emotion: {holds(len(above) == len(classes))}. "
         f"Above in {len(above)} of {len(classes)}{': ' if above else ''}{', '.join(above)}."],
        [POOLED, "The paper names Attention-LSTM and DCNN-LSTM; the plain LSTM is our reading of its baseline."],
    )  # fmt: skip


def optimizers(runner: Runner) -> Result:
    """Compare CGRU by optimiser and learning rate (experiment 3)."""
    found: dict[tuple[str, float], dict | None] = {}
    for optimizer in OPTIMIZERS:
        for rate in RATES:
            try:
                found[optimizer, rate] = runner.cross_validate("CGRU", optimizer=optimizer, learning_rate=rate)
            except FloatingPointError:  # the pair diverged, which is its result
                found[optimizer, rate] = None
    finite = {pair: summary for pair, summary in found.items() if summary is not None}
    if not finite:
        raise FloatingPointError("the loss diverged with every optimizer at every learning_rate")
    words = {published.BEST_OPTIMIZER: "best", **{("sgd", rate): "SGD unsuited" for rate in RATES}}
    rows = [
        [
            optimizer, f"{rate:g}",
            *(spread(summary, key) if summary else "diverged" for key in ("precision", "recall")),
            over_speakers(summary) if summary else "diverged",
            words.get((optimizer, rate), published.NOT_GIVEN),
        ]
        for (optimizer, rate), summary in found.items()
    ]  # fmt: skip

    def mean(pair: tuple[str, float], key: str) -> float:
        return 100 * finite[pair]["folds"][key][0] if pair in finite else math.nan

    panels = {
        f"mean {key} (%)": [[mean((optimizer, rate), key) for rate in RATES] for optimizer in OPTIMIZERS]
        for key in ("precision", "recall")
    }
    best = {key: max(finite, key=lambda pair: finite[pair]["folds"][key][0]) for key in ("precision", "recall")}
    top = {
        optimizer: max(
            (mean((optimizer, rate), "recall") for rate in RATES if (optimizer, rate) in finite), default=0.0
        )
        for optimizer in OPTIMIZERS
    }
    tops = ", ".join(f"{optimizer} {value:.1f}" for optimizer, value in top.items())
    any_summary = next(iter(finite.values()))
    protocol = any_summary["protocol"]
    named = "; ".join(f"best {key}: {optimizer} {rate:g}" for key, (optimizer, rate) in best.items())
    return Result(
        Table(["optimiser", "learning rate", "mean precision %", "mean recall %", "95 % over speakers", "paper"],
              rows),
        lambda path: figures.heat_maps(path, panels, OPTIMIZERS, [f"{rate:g}" for rate in RATES],
                                       f"CGRU on {any_summary['data']}; {protocol}"),
        {"systems": {f"{optimizer} {rate:g}": summary for (optimizer, rate), summary in found.items()}},
        protocol,
        [
            f"Adam at 0.005 is best: {holds(set(best.values()) == {published.BEST_OPTIMIZER})}. Here {named}.",
            f"SGD is unsuited: {holds(top['sgd'] < min(top[name] for name in OPTIMIZERS[1:]))}. "
            f"Best recall over the learning rates: {tops}.",
        ],
        [
            "The paper names Adam, SGD and 0.005; the other optimisers and learning rates are our choice. SGD has no "
            "momentum, and gradients are clipped.",
            "Means are compared without a test; the number of epochs is the same for all pairs.",
        ],
    )  # fmt: skip


def spectrograms(runner: Runner) -> Result:
    """Show one sentence of one speaker under four emotions, and the loss of one run."""
    trainer, summary = runner.train("CGRU", fold=True)
    readable = set(trainer.dataset.names)
    chosen, sentence = four_emotions(
        [utterance for utterance in runner.corpus.utterances if utterance.name in readable]
    )
    front = trainer.model.spectrogram
    top = (front.bins[1] - 1) * front.sample_rate / front.n_fft
    images, rows = {}, []
    kept, waves, _ = read_corpus(chosen, front.sample_rate, False)
    for utterance, wave in zip(kept, waves):
        seconds = len(wave) / front.sample_rate
        images[utterance.label] = gray(front, wave), seconds
        rows.append([utterance.label, utterance.name, utterance.speaker, f"{seconds:.2f}", published.NOT_GIVEN])
    losses = trainer.progress.rows
    return Result(
        Table(["emotion", "utterance", "speaker", "seconds", "paper"], rows),
        lambda path: figures.spectrograms(path, images, top, losses),
        {"run": summary, "loss": [row["loss"] for row in losses]},
        summary["protocol"],
        [],
        [
            sentence,
            f"The loss is CGRU's in the first fold: {losses[0]['loss']:.3f} to {losses[-1]['loss']:.3f} in "
            f"{len(losses)} epochs. UA of this fold: {percent(summary['best']['recall'])} %.",
            "The paper shows both as figures without numbers. The choice of the four emotions is ours.",
        ],
    )


def gray(front: PowerSpectrogram, wave: torch.Tensor) -> np.ndarray:
    """Return CGRU's gray image ``[T, F]``: log power scaled to 0..1 over the 80 dB below its peak."""
    with torch.no_grad():
        power = front(wave[None])[0]
    return ((power - power.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).numpy()


def four_emotions(utterances: list[Utterance]) -> tuple[list[Utterance], str]:
    """Choose up to four emotions of one speaker, with the same sentence if the file names contain it.

    Returns:
        One utterance for each emotion, and a sentence that describes the choice.
    """
    labels = sorted({utterance.label for utterance in utterances}, key=lambda label: (label not in SHOWN, label))[:4]
    groups: dict[tuple[str, str], dict[str, Utterance]] = {}
    for utterance in utterances:
        if utterance.label in labels:
            groups.setdefault((utterance.speaker, _sentence(utterance.name)), {}).setdefault(
                utterance.label, utterance
            )
    (speaker, sentence), group = max(groups.items(), key=lambda item: (bool(item[0][1]), len(item[1])))
    which = f"sentence {sentence}" if sentence else "the file names contain no sentence, so sentences may differ"
    return [group[label] for label in labels if label in group], f"Speaker {speaker}; {which}."


def _sentence(name: str) -> str:
    """Return the sentence's code in an Emo-DB or RAVDESS file name, else ""."""
    match = _EMODB.fullmatch(Path(name).stem) or _RAVDESS.fullmatch(Path(name).stem)
    return match[1] if match else ""

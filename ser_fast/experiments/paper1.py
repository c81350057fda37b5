"""The attention-CGRU paper's experiments."""

import math
import re
import statistics
from pathlib import Path

import numpy as np
import torch

from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora import Utterance
from ser_fast.experiments import figures, published
from ser_fast.experiments.settings import Lab, cross_validate_all
from ser_fast.experiments.tables import Result, Table, percent, spread
from ser_fast.models.cgru import DYNAMIC_RANGE
from ser_fast.nn.power_spectrogram import PowerSpectrogram

POOLED = "The numbers of each emotion are of all folds' predictions together."
OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adam")
RATES = (0.0005, 0.001, 0.005, 0.01)
SHOWN = ("anger", "happiness", "neutral", "sadness")
_EMODB = re.compile(r"[0-9]{2}([a-z][0-9]{2})[A-Z][a-z]")
_RAVDESS = re.compile(r"(?:[0-9]{2}-){4}([0-9]{2})-[0-9]{2}-[0-9]{2}")


def attention(lab: Lab) -> Result:
    """CGRU with and without attention, for each emotion."""
    found = cross_validate_all(lab, ["CGRU without attention", "CGRU"])
    without, with_it = found.values()
    classes = with_it["classes"]
    measures = {"precision": "precision", "recall": "recall", "f1": "F1"}

    def of(summary: dict, key: str) -> list[float]:
        return [100 * summary["pooled"]["per_class"][emotion][key] for emotion in classes]

    header = ["emotion", *(f"{name} {part}" for name in measures.values() for part in ("without", "with", "gain"))]
    gains = {key: [b - a for a, b in zip(of(without, key), of(with_it, key))] for key in measures}
    rows = []
    for number, emotion in enumerate(classes):
        cells = [
            cell
            for key in measures
            for cell in (
                f"{of(without, key)[number]:.1f}",
                f"{of(with_it, key)[number]:.1f}",
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
    series = {name: {"without": of(without, key), "with": of(with_it, key)} for key, name in measures.items()}
    title = f"CGRU with and without attention on {with_it['data']}; {with_it['protocol']}"
    return Result(
        Table([*header, "paper: gain of precision"], rows),
        lambda path: figures.attention(path, classes, series,
                                       {name: summary["pooled"]["confusion"] for name, summary in found.items()},
                                       title),
        {"systems": found},
        with_it["protocol"],
        [
            f"Every emotion gains by attention: {_is(every)} here; {', '.join(gained)} gain.",
            f"Fear gains most precision, 8 points there: {_is(most == 'fear')} here; fear: {fear}, most: {most}.",
        ],
        [POOLED, "The experiment `claims` tests with an interval whether attention helps."],
    )  # fmt: skip


def lstm(lab: Lab) -> Result:
    """F1 of each emotion for CGRU and the LSTM systems."""
    names = ["LSTM (paper 1)", "Attention-LSTM", "DCNN-LSTM", "CGRU"]
    found = cross_validate_all(lab, names)
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
        [f"CGRU's F1 is above the LSTM systems' mean in every emotion: {_is(len(above) == len(classes))} here; "
         f"in {len(above)} of {len(classes)}{': ' if above else ''}{', '.join(above)}."],
        [POOLED, "The paper names Attention-LSTM and DCNN-LSTM; the plain LSTM is our reading of its baseline."],
    )  # fmt: skip


def optimizers(lab: Lab) -> Result:
    """CGRU by optimiser and learning rate."""
    found: dict[tuple[str, float], dict | None] = {}
    for optimizer in OPTIMIZERS:
        for rate in RATES:
            try:
                found[optimizer, rate] = lab.cross_validate("CGRU", optimizer=optimizer, learning_rate=rate)
            except FloatingPointError:  # a loss or a prediction that is not finite is what this pair is worth
                found[optimizer, rate] = None
    there = {pair: summary for pair, summary in found.items() if summary is not None}
    if not there:
        raise FloatingPointError("no optimizer at any learning_rate kept the loss finite")
    words = {published.BEST_OPTIMIZER: "best", **{("sgd", rate): "SGD unsuited" for rate in RATES}}
    rows = [
        [
            optimizer, f"{rate:g}",
            *(spread(summary, key) if summary else "diverged" for key in ("precision", "recall")),
            words.get((optimizer, rate), published.NOT_GIVEN),
        ]
        for (optimizer, rate), summary in found.items()
    ]  # fmt: skip

    def mean(pair: tuple[str, float], key: str) -> float:
        return 100 * there[pair]["folds"][key][0] if pair in there else math.nan

    panels = {
        f"mean {key} (%)": [[mean((optimizer, rate), key) for rate in RATES] for optimizer in OPTIMIZERS]
        for key in ("precision", "recall")
    }
    best = {key: max(there, key=lambda pair: there[pair]["folds"][key][0]) for key in ("precision", "recall")}
    top = {
        optimizer: max(
            (mean((optimizer, rate), "recall") for rate in RATES if (optimizer, rate) in there), default=0.0
        )
        for optimizer in OPTIMIZERS
    }
    said = ", ".join(f"{optimizer} {value:.1f}" for optimizer, value in top.items())
    any_summary = next(iter(there.values()))
    protocol = any_summary["protocol"]
    named = "; ".join(f"best {key}: {optimizer} {rate:g}" for key, (optimizer, rate) in best.items())
    return Result(
        Table(["optimiser", "learning rate", "mean precision %", "mean recall %", "paper"], rows),
        lambda path: figures.heat_maps(path, panels, OPTIMIZERS, [f"{rate:g}" for rate in RATES],
                                       f"CGRU on {any_summary['data']}; {protocol}"),
        {"systems": {f"{optimizer} {rate:g}": summary for (optimizer, rate), summary in found.items()}},
        protocol,
        [
            f"Adam at 0.005 is best: {_is(set(best.values()) == {published.BEST_OPTIMIZER})} here; {named}.",
            f"SGD is unsuited: {_is(top['sgd'] < min(top[name] for name in OPTIMIZERS[1:]))} here; "
            f"best recall at any rate: {said}.",
        ],
        [
            "The optimisers beside Adam and SGD and the learning rates beside 0.005 are our choice; SGD is without "
            "momentum, and gradients are clipped.",
            "These are means, without a test; all pairs share one number of epochs.",
        ],
    )  # fmt: skip


def spectrograms(lab: Lab) -> Result:
    """One sentence of one speaker under four emotions, and the loss of one run."""
    trainer, summary = lab.train("CGRU", fold=True)
    readable = set(trainer.dataset.names)
    chosen, sentence = four_emotions([utterance for utterance in lab.corpus.utterances if utterance.name in readable])
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
            f"The loss is CGRU's in the first fold, from {losses[0]['loss']:.3f} to {losses[-1]['loss']:.3f} in "
            f"{len(losses)} epochs; UA of that fold's test {percent(summary['best']['recall'])} %.",
            "The paper shows both as figures without numbers; which four emotions is our choice.",
        ],
    )


def gray(front: PowerSpectrogram, wave: torch.Tensor) -> np.ndarray:
    """The gray image ``[T, F]`` that CGRU sees: log power scaled to 0..1 over the 80 dB below its peak."""
    with torch.no_grad():
        power = front(wave[None])[0]
    return ((power - power.max()) / DYNAMIC_RANGE + 1).clamp(0, 1).numpy()


def four_emotions(utterances: list[Utterance]) -> tuple[list[Utterance], str]:
    """An utterance of one speaker for each of up to four emotions, of one sentence where the names tell sentences."""
    labels = sorted({utterance.label for utterance in utterances}, key=lambda label: (label not in SHOWN, label))[:4]
    groups: dict[tuple[str, str], dict[str, Utterance]] = {}
    for utterance in utterances:
        if utterance.label in labels:
            groups.setdefault((utterance.speaker, _sentence(utterance.name)), {}).setdefault(
                utterance.label, utterance
            )
    (speaker, sentence), group = max(groups.items(), key=lambda item: (bool(item[0][1]), len(item[1])))
    told = f"sentence {sentence}" if sentence else "the corpus does not tell its sentences, so they may differ"
    return [group[label] for label in labels if label in group], f"Speaker {speaker}; {told}."


def _sentence(name: str) -> str:
    match = _EMODB.fullmatch(Path(name).stem) or _RAVDESS.fullmatch(Path(name).stem)
    return match[1] if match else ""


def _is(held: bool) -> str:
    return "so" if held else "not so"

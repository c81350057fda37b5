"""The folds of a cross-validation, and the options that each of them changes."""

import inspect
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ser_fast.models import MODELS
from ser_fast.training.config import TrainConfig

HELD_OUT = ("test_speakers", "test_fold", "test_fraction")
PROTOCOLS = ("loso", "speakers", "random")


@dataclass
class Folds:
    """How a corpus is divided again and again, so that every utterance is tested once for each seed.

    Args:
        protocol: "loso" leaves one speaker out at a time; "speakers" leaves out one of ``folds`` groups of whole
            speakers; "random" leaves out one of ``folds`` random parts, which share speakers.
        folds: of "speakers" and "random"; at least 2.
        seeds: how many, from the run's own on, of the same folds; they draw the weights and the batches.
        jobs: folds at a time, each in a process of its own with its share of the cores.
        choose: candidates, each a dict of options that differ, such as ``{"clip": 1, "cgru.dropout": 0}``. Every fold
            takes the one that is best on average in folds of its own training part.
        inner_folds: how many these are: of whole speakers, where the protocol keeps speakers apart.
    """

    protocol: Literal["loso", "speakers", "random"] = "loso"
    folds: int = 10
    seeds: int = 1
    jobs: int = 1
    choose: list[dict] = field(default_factory=list)
    inner_folds: int = 3

    def __post_init__(self):
        for name, low in (("folds", 2), ("seeds", 1), ("jobs", 1), ("inner_folds", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}; it must be one of {', '.join(PROTOCOLS)}")


class Fold(NamedTuple):
    """One run: its seed, what is left out, and the options that say so."""

    seed: int
    name: str
    config: TrainConfig


def plan(config: TrainConfig, folds: Folds, there: list[str]) -> tuple[list[Fold], str]:
    """The runs of a cross-validation over these speakers, seed by seed, and the sentence that names the protocol.

    Raises:
        ValueError: fewer speakers than folds of them; options that a protocol itself sets.
    """
    if config.test_speakers or config.test_fold:
        raise ValueError("test_speakers and test_fold must be left out: the protocol sets them")
    there = sorted(set(there))
    count = len(there) if folds.protocol == "loso" else folds.folds
    if folds.protocol != "random" and not 2 <= count <= len(there):
        raise ValueError(
            f"protocol is {folds.protocol} in {count} folds, but data has {len(there)} speakers; "
            "it must have two or more, and as many as folds"
        )
    runs = []
    for seed in range(config.seed, config.seed + folds.seeds):
        for number in range(count):
            held_out = _held_out(folds, there, config.seed, number)
            name = ",".join(held_out.get("test_speakers", [f"{number + 1}/{count}"]))
            out = Path(config.out) / f"seed{seed}" / f"fold{number + 1:02d}"
            runs.append(Fold(seed, name, replace(config, out=out, seed=seed, **held_out)))
    sentence = {
        "loso": f"leave one speaker out, {count} speakers",
        "speakers": f"{count} folds of whole speakers",
        "random": f"{count} random folds, speakers shared",
    }[folds.protocol]
    return runs, sentence


def _held_out(folds: Folds, there: list[str], seed: int, number: int) -> dict[str, str | list[str]]:
    """What a fold leaves out; every seed of a cross-validation has the same folds, so that they can be compared."""
    if folds.protocol == "random":
        return {"test_fold": f"{number + 1}/{folds.folds}/{seed}"}
    if folds.protocol == "loso":
        return {"test_speakers": [there[number]]}
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"test_speakers": sorted(there[i] for i in order[number :: folds.folds])}


def changed(config: TrainConfig, options: dict, candidate: dict[str, Any]) -> tuple[TrainConfig, dict]:
    """The options of a run and of its model with a candidate's in place of some.

    Raises:
        ValueError: a name that is no option of training, nor of the model with its name in front; a value that
            training does not take.
    """
    known = {entry.name for entry in fields(TrainConfig)} - {"data", "out", "model", "seed"} - set(HELD_OUT)
    of_model = set(inspect.signature(MODELS[config.model].__init__).parameters) - {"self", "num_classes"}
    training, model = {}, {}
    for name, value in candidate.items():
        before, _, option = name.rpartition(".")
        if not before and name in known:
            training[name] = value
        elif before == config.model and option in of_model:
            model[option] = value
        else:
            allowed = f"options of training, such as learning_rate, or {config.model}.OPTION of its model"
            raise ValueError(f"choose names {name!r}; it must name {allowed}")
    try:
        return replace(config, **training), options | model
    except TypeError as error:
        raise ValueError(f"choose has {training}; its values must be of their options' types ({error})") from error

"""The folds of a cross-validation and the options of each."""

import inspect
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ser_fast._require import require
from ser_fast.models import MODELS
from ser_fast.training.config import TrainConfig

HELD_OUT = ("test_speakers", "test_fold", "test_fraction")
PROTOCOLS = ("loso", "speakers", "random")
_NOT_CHOSEN = ("data", "out", "model", "seed", "cache", "cache_dir", "workers")


@dataclass
class Folds:
    """Options of a cross-validation, which tests every utterance once for each seed.

    Args:
        protocol: "loso" leaves one speaker out at a time; "speakers" leaves out one of ``folds`` groups of whole
            speakers; "random" leaves out one of ``folds`` random parts, which share speakers.
        folds: number of folds of "speakers" and "random"; at least 2.
        seeds: number of seeds, from the run's own on; they draw weights and batches, not the folds.
        jobs: folds that run at a time, each in its own process with its share of the cores.
        choose: candidates, each a dict of options, such as ``{"clip": 1, "cgru.dropout": 0}``. Every fold takes the
            one with the best mean score in folds of its training part.
        inner_folds: number of these; whole speakers, unless the protocol is "random".

    Raises:
        ValueError: a number is too small or the protocol is unknown.
    """

    protocol: Literal["loso", "speakers", "random"] = "loso"
    folds: int = 10
    seeds: int = 1
    jobs: int = 1
    choose: list[dict] = field(default_factory=list)
    inner_folds: int = 3

    def __post_init__(self):
        for name, low in (("folds", 2), ("seeds", 1), ("jobs", 1), ("inner_folds", 2)):
            value = getattr(self, name)
            require(value >= low, f"{name} is {value}", f"at least {low}")
        require(self.protocol in PROTOCOLS, f"protocol is {self.protocol!r}", f"one of {', '.join(PROTOCOLS)}")


class Fold(NamedTuple):
    """One run: its seed, the name of the part that is left out, and its options."""

    seed: int
    name: str
    config: TrainConfig


def plan(config: TrainConfig, folds: Folds, speakers: list[str]) -> tuple[list[Fold], str]:
    """Return the runs of a cross-validation, seed by seed, and a phrase that describes the protocol.

    Args:
        config: options of the runs; ``out`` is the folder of all of them.
        folds: options of the cross-validation.
        speakers: speaker of each utterance.

    Raises:
        ValueError: there are fewer speakers than folds, or an option is given that the protocol sets.
    """
    if config.test_speakers or config.test_fold:
        raise ValueError("test_speakers or test_fold is given, which the protocol sets; omit it")
    speakers = sorted(set(speakers))
    count = len(speakers) if folds.protocol == "loso" else folds.folds
    if folds.protocol != "random" and not 2 <= count <= len(speakers):
        raise ValueError(
            f"protocol is {folds.protocol} in {count} folds, but data has {len(speakers)} speakers; "
            "it must have two or more, and as many as folds"
        )
    runs = []
    for seed in range(config.seed, config.seed + folds.seeds):
        for number in range(count):
            held_out = _held_out(folds, speakers, config.seed, number)
            name = ",".join(held_out.get("test_speakers", [f"{number + 1}/{count}"]))
            out = Path(config.out) / f"seed{seed}" / f"fold{number + 1:02d}"
            runs.append(Fold(seed, name, replace(config, out=out, seed=seed, **held_out)))
    sentence = {
        "loso": f"leave one speaker out, {count} speakers",
        "speakers": f"{count} folds of whole speakers",
        "random": f"{count} random folds, speakers shared",
    }[folds.protocol]
    return runs, sentence


def _held_out(folds: Folds, speakers: list[str], seed: int, number: int) -> dict[str, str | list[str]]:
    """Return the options that hold out a fold; ``seed`` is the first one, so that all seeds have the same folds."""
    if folds.protocol == "random":
        return {"test_fold": f"{number + 1}/{folds.folds}/{seed}"}
    if folds.protocol == "loso":
        return {"test_speakers": [speakers[number]]}
    order = torch.randperm(len(speakers), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"test_speakers": sorted(speakers[i] for i in order[number :: folds.folds])}


def changed(config: TrainConfig, options: dict, candidate: dict[str, Any]) -> tuple[TrainConfig, dict]:
    """Return the options of a run and of its model, changed by a candidate.

    Args:
        config: options of the run.
        options: keyword arguments of the model.
        candidate: changed options by name; those of the model as ``MODEL.OPTION``.

    Raises:
        ValueError: a name is unknown or cannot be chosen, or a value is out of range or of another type.
    """
    known = {entry.name for entry in fields(TrainConfig)} - {*_NOT_CHOSEN, *HELD_OUT}
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

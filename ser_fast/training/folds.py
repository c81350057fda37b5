"""The folds of a cross-validation and the options of each."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ser_fast._require import require
from ser_fast.models import MODELS
from ser_fast.training.config import TrainConfig

HELD_OUT = ("test_speakers", "test_groups", "test_fold", "test_fraction", "test_data")
PROTOCOLS = ("loso", "speakers", "random", "logo", "parts")
_NOT_CHOSEN = (
    "data", "columns", "labels", "targets", "allow_missing_classes", "skip_bad", "out", "model", "seed", "cache",
    "cache_dir", "workers", "log", "features", "features_layer",
)  # fmt: skip


@dataclass
class Folds:
    """Options of a cross-validation, which tests every utterance once for each seed.

    Args:
        protocol: "loso" leaves one speaker out at a time; "speakers" leaves out one of ``folds`` sets of whole
            speakers; "random" leaves out one of ``folds`` random parts, which share speakers; "logo" leaves one group
            out, such as a session, of a corpus that has a column ``group``; "parts" takes the corpus's own folds,
            such as EmoBox's, or its only division.
        folds: number of folds of "speakers" and "random"; at least 2.
        seeds: number of seeds, from the run's own on; they draw weights and batches, not the folds.
        jobs: folds that run at a time, each in its own process with its share of the cores.
        choose: candidates, each a dict of options, such as ``{"clip": 1, "cgru.dropout": 0}``. Every fold takes the
            one with the best mean score in folds of its training part.
        inner_folds: number of these; whole speakers, unless the protocol is "random".

    Raises:
        ValueError: a number is too small or the protocol is unknown.
    """

    protocol: Literal["loso", "speakers", "random", "logo", "parts"] = "loso"
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


def plan(
    config: TrainConfig, folds: Folds, speakers: list[str], groups: Sequence[str] = (), own: int | None = None
) -> tuple[list[Fold], str]:
    """Return the runs of a cross-validation, seed by seed, and a phrase that describes the protocol.

    Args:
        config: options of the runs; ``out`` is the folder of all of them.
        folds: options of the cross-validation.
        speakers: speaker of each utterance.
        groups: group of each utterance; empty if the corpus has none.
        own: number of the corpus's own folds; 0 for a single division of its own, None without any.

    Raises:
        ValueError: there are fewer speakers or groups than folds, the corpus has no groups or folds of its own, or an
            option is given that the protocol sets.
    """
    given = [name for name in HELD_OUT if name != "test_fraction" and getattr(config, name)]
    if given:
        raise ValueError(f"{' or '.join(given)} is given, which the protocol sets; omit it")
    require(config.test_fraction > 0, "test_fraction is 0, but a cross-validation tests", "above 0, or omitted")
    held_out, sentence = _divided(config, folds, sorted(set(speakers)), sorted(set(groups)), own)
    runs = []
    for seed in range(config.seed, config.seed + folds.seeds):
        for number, (name, options) in enumerate(held_out, 1):
            out = Path(config.out) / f"seed{seed}" / f"fold{number:02d}"
            runs.append(Fold(seed, name, replace(config, out=out, seed=seed, **options)))
    return runs, sentence


def _divided(
    config: TrainConfig, folds: Folds, speakers: list[str], groups: list[str], own: int | None
) -> tuple[list[tuple[str, dict]], str]:
    """Return the name of each fold and the options that hold it out, and a phrase that describes the protocol.

    All seeds have the same folds, so those that are drawn are drawn by the first one.
    """
    protocol, count = folds.protocol, folds.folds
    if protocol == "parts":
        if own is None:
            raise ValueError("protocol is parts, but data has no parts or folds of its own; it must be another one")
        if not own:
            return [("the test part", {})], "the corpus's own test part"
        numbers = range(1, own + 1)
        return [(f"fold {k}", {"test_fold": str(k)}) for k in numbers], f"the corpus's own {own} folds"
    if protocol == "random":
        numbers = range(1, count + 1)
        named = [(f"{k}/{count}", {"test_fold": f"{k}/{count}/{config.seed}"}) for k in numbers]
        return named, f"{count} random folds, speakers shared"
    of, noun = (groups, "group") if protocol == "logo" else (speakers, "speaker")
    if not of:
        raise ValueError("protocol is logo, but data has no column 'group'; it must be another one")
    count = folds.folds if protocol == "speakers" else len(of)
    if not 2 <= count <= len(of):
        raise ValueError(
            f"protocol is {protocol} in {count} folds, but data has {len(of)} {noun}s; "
            "it must have two or more, and as many as folds"
        )
    if protocol != "speakers":
        return [(name, {f"test_{noun}s": [name]}) for name in of], f"leave one {noun} out, {count} {noun}s"
    order = torch.randperm(len(of), generator=torch.Generator().manual_seed(config.seed)).tolist()
    sets = [sorted(of[i] for i in order[number::count]) for number in range(count)]
    return [(",".join(names), {"test_speakers": names}) for names in sets], f"{count} folds of whole speakers"


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

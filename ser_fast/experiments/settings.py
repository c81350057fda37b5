"""Settings of an experiment and the runner that trains its systems: recipe, scale and command-line options."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ser_fast.data.corpora import Corpus, load_corpus
from ser_fast.data.corpora.manifest import write_manifest
from ser_fast.data.corpora.synthetic import synthetic, synthetic_sentiment
from ser_fast.data.dataset import load_dataset, split_corpus
from ser_fast.models import MODELS
from ser_fast.models.systems import SYSTEMS, System
from ser_fast.reports.terminal import say
from ser_fast.training import cross_validation
from ser_fast.training.checkpoint import blank
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.folds import HELD_OUT, Folds
from ser_fast.training.recipe import load_recipe
from ser_fast.training.trainer import Trainer

EMBEDDED = {"synthetic": synthetic, "synthetic-sentiment": synthetic_sentiment}
CGRU_LSTM = "CGRU with an LSTM"
# CGRU with an LSTM in place of the GRU; not one of paper 1's systems.
ALL_SYSTEMS = SYSTEMS | {CGRU_LSTM: System("cgru", {"cell": "lstm"})}
# Options of TrainConfig that the experiment sets itself, so the command line does not offer them.
OWN = {"data", "labels", "targets", "out", "model", "augment", *HELD_OUT}
# Options that each scale changes; a model takes those of its options that it has.
_SHORT = {"learning_rate": 1e-3, "batch_size": 16, "loss": "cross_entropy", "validation": "none", "patience": 0}
_SMALL = {"hidden_size": 64, "channels": (8, 16), "log": True}
SCALES: dict[str, dict[str, dict]] = {
    "full": {},
    "quick": {
        "training": _SHORT | {"epochs": 12},
        "model": _SMALL | {"hop_length": 320},
    },
    "long": {
        "training": _SHORT,
        "model": _SMALL | {"hop_length": 640},
    },
    "tiny": {
        "training": _SHORT | {"epochs": 1},
        "model": {"hidden_size": 16, "hop_length": 640, "win_length": 640, "n_fft": 1024, "log": True,
                  "channels": (4, 4), "n_mels": 16, "n_cepstra": 4},
        "folds": {"protocol": "speakers", "folds": 2},
    },
}  # fmt: skip


@dataclass
class Settings:
    """Data, output folder, scale and training options of an experiment.

    Args:
        data: corpus, as in ``ser-fast train``.
        out: folder of the tables and figures; its subfolder ``runs`` holds the runs, which other experiments reuse.
        scale: "full" is the paper's recipe unchanged; "quick" is smaller, with a coarser hop, for a CPU; "long" is
            as small, with a still coarser hop and the paper's number of epochs; "tiny" is one epoch of a very small
            network and only checks that everything runs.
        recipe: recipe in place of the experiment's own: the name of one in ser_fast, or a YAML file.
        options: options of the models; each system takes those that it has.
        training: options of :class:`ser_fast.training.config.TrainConfig`; they override the recipe and the scale.
        folds: options of :class:`ser_fast.training.folds.Folds`.

    Raises:
        ValueError: if ``scale`` is unknown.
    """

    data: str = "synthetic"
    out: Path = Path("runs/experiments")
    scale: Literal["full", "quick", "long", "tiny"] = "quick"
    recipe: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    folds: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.out = Path(self.out)
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; it must be one of {', '.join(SCALES)}")


def add_options(parser) -> None:
    """Add to a jsonargparse parser the options that :func:`from_options` reads.

    Options of the training and the folds default to None, so that only those given override the recipe.
    """
    parser.add_class_arguments(Settings, skip={"training", "folds"})
    for options, skip in ((TrainConfig, OWN), (Folds, set())):
        parser.add_class_arguments(options, skip=skip)
        parser.set_defaults({entry.name: None for entry in fields(options) if entry.name not in skip})


def from_options(values: dict) -> Settings:
    """Return the settings of parsed command-line options; those that are None are left to the recipe and scale."""
    given = {name: value for name, value in values.items() if value is not None}
    folds = {entry.name: given.pop(entry.name) for entry in fields(Folds) if entry.name in given}
    own = {entry.name: given.pop(entry.name) for entry in fields(Settings) if entry.name in given}
    return Settings(**own, training=given, folds=folds)


class Runner:
    """Trains an experiment's systems, each in its own folder, or loads their results from there.

    Args:
        settings: data, scale and options.
        recipe: recipe of the experiment; ``settings.recipe`` overrides it.
    """

    def __init__(self, settings: Settings, recipe: str):
        self.settings, self.scale = settings, SCALES[settings.scale]
        self.recipe = settings.recipe or recipe
        self.data = _embedded(settings) or settings.data
        self.corpus: Corpus = load_corpus(self.data, columns=settings.training.get("columns") or "")
        self.folds = Folds(**self.scale.get("folds", {}) | settings.folds)
        self.used: dict[str, str] = {}
        rows = [(utterance.name, utterance.speaker, utterance.label, utterance.value)
                for utterance in self.corpus.utterances]  # fmt: skip
        # A run folder does not check that the data is the same, so each corpus has its own folder.
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]
        self.runs = settings.out / "runs" / f"{slug(self.corpus.name)}-{digest}"

    def configure(self, system: System, **training) -> tuple[TrainConfig, dict]:
        """Return the training and model options of a system.

        In increasing priority: recipe, scale, settings, ``training``, and the options that define the system.
        """
        recipe = load_recipe(self._recipe_of(system))
        known = {entry.name for entry in fields(TrainConfig)}
        base = {name: value for name, value in recipe.items() if name in known}
        changed = self.scale.get("training", {}) | self.settings.training | training
        if not self.corpus.classes:
            changed |= {"loss": "auto", "label_smoothing": 0.0}  # the recipes' losses are for classes
        config = TrainConfig(**base | changed | {"data": self.data, "model": system.model})
        # All systems of a paper share its recipe's model options, except num_heads, which defines a system.
        shared = dict(recipe.get(recipe["model"], {}))
        if system.model != recipe["model"]:
            shared.pop("num_heads", None)
        has = inspect.signature(MODELS[system.model]).parameters
        wanted = shared | self.scale.get("model", {}) | self.settings.options
        options = {name: value for name, value in wanted.items() if name in has}
        return config, options | system.options

    def cross_validate(self, name: str, folds: Folds | None = None, **training) -> dict:
        """Cross-validate a system, or load the finished result, and return its summary.

        Args:
            name: system, or recipe name for the recipe's own model.
            folds: protocol; by default that of the settings.
            training: options of the experiment, which override the recipe's.
        """
        system, folds = self.system(name), folds or self.folds
        config, options = self.configure(system, **training)
        out = self.folder(name, folds, **training)
        say(f"{name}: {out}")
        self.record(name, **training)
        return cross_validation.cross_validate(replace(config, out=out), options, folds, say)

    def folder(self, name: str, folds: Folds | None = None, **training) -> Path:
        """Return the folder of a cross-validation; equal systems with equal options share it under any name."""
        system, folds = self.system(name), folds or self.folds
        plain, _ = self.configure(system)
        beyond = [f"{key}-{value}" for key, value in training.items() if getattr(plain, key) != value]
        counted = folds.protocol in ("speakers", "random")
        protocol = f"{folds.protocol}{folds.folds}" if counted else folds.protocol
        same = next((other for other, known in ALL_SYSTEMS.items() if known == system), Path(name).stem)
        return self.runs / protocol / slug("-".join([same, *beyond]))

    def train(self, name: str, fold: bool, **training) -> tuple[Trainer, dict]:
        """Do one training run, on the first fold (``fold``) or on the corpus's own parts.

        Returns:
            The trainer and the summary.
        """
        system = self.system(name)
        config, options = self.configure(system, **training)
        self.record(name, **training)
        out = self.runs / ("one" if fold else "parts") / slug(name) / f"seed{config.seed}"
        if fold:
            config = cross_validation.plan_corpus(config, self.folds, self.corpus)[0][0].config
        config = replace(config, out=out)
        split = split_corpus(self.corpus, **config.held_out)
        rate = blank(config.model, 2, options).spectrogram.sample_rate
        dataset = load_dataset(self.corpus, rate, config.skip_bad, storage=config.storage())
        if dataset.skipped:  # the parts are drawn from the utterances that could be read
            split = dataset.split(**config.held_out)
        with run_folder(out, run_options(config, options)) as folder:
            trainer = Trainer(config, options, dataset, split, folder)
            return trainer, trainer.run()

    def system(self, name: str) -> System:
        """Return the system of this name; a recipe's name means its model with its options."""
        if name in ALL_SYSTEMS:
            return ALL_SYSTEMS[name]
        recipe = load_recipe(self.recipe)
        return System(recipe["model"], dict(recipe.get(recipe["model"], {})) if name == self.recipe else {})

    def differences(self) -> list[str]:
        """Return, for each recipe and model used, a sentence with the options that differ from the recipe."""
        return list(dict.fromkeys(self.used.values()))

    def _recipe_of(self, system: System) -> str:
        """Return the runner's recipe if it is of the system's paper, else that paper's own."""
        of_paper_1 = system.model == "cgru"
        if (load_recipe(self.recipe)["model"] == "cgru") == of_paper_1:
            return self.recipe
        return "paper1" if of_paper_1 else "paper2_emodb"

    def record(self, name: str, **training) -> None:
        """Record how a system's options differ from its recipe, for :meth:`differences`."""
        system = self.system(name)
        config, options = self.configure(system, **training)
        recipe = self._recipe_of(system)
        wanted = load_recipe(recipe)
        theirs = asdict(TrainConfig(**{key: value for key, value in wanted.items() if key in asdict(config)}))
        changed = [
            f"{key} {value} (recipe: {theirs[key]})"
            for key, value in asdict(config).items()
            if key not in ("data", "out", "model", *training) and value != theirs[key]
        ]
        has = inspect.signature(MODELS[system.model]).parameters
        own = wanted.get(wanted["model"], {})
        changed += [
            f"{key} {value} (recipe: {own.get(key, has[key].default)})"
            for key, value in options.items()
            if key not in system.options and value != own.get(key, has[key].default)
        ]
        sentence = "; ".join(changed) if changed else "nothing is changed"
        self.used[name] = f"recipe {recipe}, model {system.model}: {sentence}"


def _embedded(settings: Settings) -> str | None:
    """Write an embedded corpus as files, once, and return it as ``data``; None for another corpus.

    Reading the files is faster than synthesising the voices again. "tiny" takes fewer voices.
    """
    if settings.data not in EMBEDDED:
        return None
    import soundfile

    size = {"speakers": 4, "takes": 2} if settings.scale == "tiny" else {}
    folder = settings.out / "voices" / settings.scale
    table = folder / f"{settings.data}.csv"
    if not table.is_file():
        (folder / settings.data).mkdir(parents=True, exist_ok=True)
        corpus = EMBEDDED[settings.data](**size)
        files = [folder / settings.data / f"{utterance.name}.wav" for utterance in corpus.utterances]
        for path, utterance in zip(files, corpus.utterances):
            soundfile.write(path, utterance.samples.numpy(), utterance.sample_rate, subtype="FLOAT")
        rows = [replace(utterance, path=path) for path, utterance in zip(files, corpus.utterances)]
        write_manifest(replace(corpus, utterances=rows), table)  # written last: the table marks the files as complete
    return f"manifest:{table}"


def slug(name: str) -> str:
    """Return ``name`` as a folder name: lower case, other characters replaced by hyphens."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")


def cross_validate_all(runner: Runner, names: Iterable[str]) -> dict[str, dict]:
    """Cross-validate systems and return their summaries by name."""
    return {name: runner.cross_validate(name) for name in names}

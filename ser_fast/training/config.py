"""Options of a training run."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ser_fast._require import require
from ser_fast.data.augmentation import Augmentation
from ser_fast.data.corpora.columns import parse_columns
from ser_fast.data.corpora.labels import read_map
from ser_fast.data.splits import parse_fold
from ser_fast.data.storage import Storage
from ser_fast.data.utterance import check_targets
from ser_fast.training import distributed
from ser_fast.training.run_folder import RunFolder
from ser_fast.training.task import LOSSES


@dataclass
class TrainConfig:
    """Options of a training run.

    Args:
        data: "synthetic", "synthetic-sentiment", "emodb:PATH", "casia:PATH", "cremad:PATH", "meld:PATH",
            "ravdess:PATH", "savee:PATH", "tess:PATH", "folders:PATH", "speakers:PATH", "emobox:PATH",
            "manifest:PATH", "audformat:PATH", or a path whose kind is recognised.
        labels: YAML file that maps labels of the corpus to classes, such as ``angry: anger``, or the map itself;
            ``null`` leaves utterances out. Labels that are not in it keep their names.
        test_data: another corpus, whose test part, or all of it without parts, is the test part. ``labels`` maps its
            labels too, and each must then be a class of ``data``.
        out: run folder; the same options resume an interrupted run.
        model: name of the model; its options are under this name.
        test_speakers: speakers held out for the test, separated by commas or as a list; in YAML '03' needs quotes.
        test_groups: groups held out for the test, such as sessions, in a corpus that has a column ``group``; written
            as test_speakers.
        test_fold: without these, "k/K" holds out the k-th of K random folds, which share speakers; "k/K/S" draws the
            folds by S instead of the seed; "k" takes the k-th of the corpus's own folds.
        test_fraction: share of the utterances drawn for the test, in 0..1; used without the options above and without
            parts or folds of the corpus's own. 0 is no test: all utterances train, those of the corpus's own test
            part too.
        allow_missing_classes: train without the classes that have no utterance in the training part; they stay
            outputs of the model, and the protocol names them. By default that is an error.
        validation: utterances that choose the best epoch: "random" training utterances, those of some training
            "speakers" or "groups", or "none", which takes the last epoch and trains on the corpus's own validation
            part. "auto" is "speakers" where the test part has speakers of its own, unless there is only one for the
            training or a class would be missing there, and "random" elsewhere.
        valid_fraction: share of the training utterances, speakers or groups in the validation part, in 0..1.
        epochs: passes over the training part.
        patience: stop after so many epochs without a better one; 0 never stops.
        batch_size: utterances of a batch.
        bucket: 0 sorts all utterances by length, which gives the same batches in every epoch; n draws n batches of
            utterances at a time and sorts these.
        balance: repeat utterances so that in every epoch each class has as many as the largest one.
        optimizer: "adam", "adamw", "sgd" (without momentum), "rmsprop" or "adagrad".
        learning_rate: learning rate of the optimizer.
        schedule: schedule of the learning rate: "constant", or "cosine", which rises over the first twentieth of all
            steps and falls to 0 at the last.
        weight_decay: weight decay of the optimizer.
        loss: "cross_entropy", or "l1", the mean absolute difference of the softmax and the one-hot label; of values,
            standardised by the training part, "l1", "mse", the mean squared error, or "ccc", 1 minus the concordance
            correlation of a batch. "auto" is "cross_entropy" for classes and "l1" for values.
        label_smoothing: share of a one-hot label that is spread over all classes, in 0..1.
        clip: largest norm of the gradient; inf is no limit.
        augment: augmentation of the training utterances.
        seed: seed of the splits, the initial weights, the batch order and the dropout.
        skip_bad: skip and count unreadable files instead of stopping.
        cache: where the decoded corpus is kept: "memory"; "disk", a file that later runs use again; "none", which
            decodes the audio files in every epoch; or "auto", the first of these that fits. Results do not depend on
            it. Several processes share one copy on disk.
        cache_dir: folder of the caches on disk; "" is ser_fast/corpora in $XDG_CACHE_HOME or ~/.cache.
        workers: processes that read audio ahead under "disk" and "none"; -1 is 0 for "disk", and for "none" one for
            each core but one, at most 8.
        device: "auto", "cpu" or "cuda"; under torchrun each process takes its own GPU.
        targets: columns of numbers of the corpus to predict together, such as "arousal,valence", separated by commas
            or as a list; by default its labels, or its column "value".

        columns: columns of the tables of ``data`` and ``test_data`` under other names than ours, such as
            "file=path,label=emotion,speaker=spk,split=set", or a map.
        log: loggers beside the run folder's own files, separated by commas or as a list: "tensorboard", event files
            in the folder ``tensorboard`` of each run, which need the extra "tensorboard".
        features: features of frames that bigru_mha or baseline takes in place of a spectrogram: an .npz or .parquet
            of an array for each file, or the local folder of a transformers model, such as wav2vec 2.0.
        features_layer: hidden states of that model that are taken: 0 is the input of its first layer, -1 its output.

    Raises:
        ValueError: a value is out of range or two options contradict each other.

    Example:
        >>> config = TrainConfig(data="synthetic", model="cgru", epochs=5, test_speakers="03, 08", device="cpu")
        >>> config.test_speakers
        ['03', '08']
    """

    data: str = "synthetic"
    out: Path = Path("runs/train")
    model: Literal[
        "cgru", "bigru_mha", "baseline", "functionals", "descriptor_gru", "plain_cgru", "plain_bigru_mha"
    ] = "bigru_mha"
    test_speakers: str | int | list[str | int] = ""
    test_fold: str = ""
    test_fraction: float = 0.2
    validation: Literal["auto", "random", "speakers", "groups", "none"] = "auto"
    valid_fraction: float = 0.1
    epochs: int = 40
    patience: int = 0
    batch_size: int = 32
    bucket: int = 0
    balance: bool = False
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    loss: Literal["auto", "cross_entropy", "l1", "mse", "ccc"] = "auto"
    label_smoothing: float = 0.0
    clip: float = 5.0
    augment: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    skip_bad: bool = False
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    cache_dir: str = ""
    workers: int = -1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    targets: str | list[str] = ""
    labels: dict | str = ""
    test_data: str = ""
    test_groups: str | int | list[str | int] = ""
    allow_missing_classes: bool = False
    columns: dict | str = ""
    log: str | list[str] = ""
    features: str = ""
    features_layer: int = -1

    def __post_init__(self):
        if isinstance(self.augment, dict):
            self.augment = Augmentation(**self.augment)
        for name in ("speeds", "snr", "mixup") if self.features else ():
            value = getattr(self.augment, name)
            found = f"augment.{name} is {value} with features, which are computed once from the whole wave"
            require(not value, found, "omitted; the masks of augment work on features")
        gpus = torch.cuda.device_count()
        for name, good, allowed in (
            *((name, getattr(self, name) >= 1, "at least 1") for name in ("epochs", "batch_size")),
            *((name, getattr(self, name) >= 0, "at least 0") for name in ("patience", "bucket", "seed")),
            ("seed", self.seed < 2**32, "below 2^32"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0 and finite"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in 0..1, 1 excluded"),
            ("loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            ("batch_size", self.batch_size > 1 or self.loss != "ccc", "at least 2 if loss is ccc"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more and finite"),
            ("clip", self.clip > 0, "above 0"),
            ("test_fraction", 0 <= self.test_fraction < 1, "between 0 and 1, 1 excluded"),
            ("valid_fraction", 0 < self.valid_fraction < 1, "between 0 and 1, both excluded"),
            ("device", self.device != "cuda" or torch.cuda.is_available(), "cpu: torch sees no GPU here"),
            ("device", self.device == "cpu" or not 0 < gpus <= distributed.local_rank(),
             f"cpu, or --nproc-per-node at most {gpus}: torch sees no more GPUs here"),
            ("out", Path(self.out).resolve() != Path.cwd(), "a folder of its own"),
            ("patience", not self.patience or self.validation != "none", "0 if validation is none"),
        ):  # fmt: skip
            value = getattr(self, name)
            require(good, f"{name} is {value}" if name != "out" else f"out is '{value}'", allowed)
        self.test_speakers, self.test_groups = _names(self.test_speakers), _names(self.test_groups)
        names = self.targets if isinstance(self.targets, list) else str(self.targets).split(",")
        self.targets = [str(name).strip() for name in names] if self.targets else []
        check_targets(self.targets)
        self.columns = parse_columns(self.columns)
        self.log = _names(self.log)
        for name in self.log:
            require(name in LOGGERS, f"log names '{name}'", f"one of {', '.join(LOGGERS)}, or omitted")
        if self.test_fold:
            parse_fold(self.test_fold)
        given = [name for name in ("test_speakers", "test_groups", "test_fold", "test_data") if getattr(self, name)]
        if len(given) > 1:
            value = getattr(self, given[-1])
            value = ",".join(value) if isinstance(value, list) else value
            raise ValueError(f"{given[-1]} is {value}, but {given[0]} are given; omit one of them")
        if given:
            found = f"test_fraction is 0, but {given[0]} is given"
            require(self.test_fraction > 0, found, f"above 0, or {given[0]} omitted")
        if isinstance(self.labels, str):
            self.labels = read_map(Path(self.labels)) if self.labels else {}
        for label, name in self.labels.items():
            good = isinstance(label, str) and isinstance(name, str | None)
            require(good, f"labels maps {label!r} to {name!r}", "texts; numbers need quotes, and null leaves out")
        if self.labels and self.targets:
            raise ValueError(f"labels is given, but targets, {', '.join(self.targets)}, have none; omit one of them")
        self.storage()

    def storage(self, processes: int = 1) -> Storage:
        """Return how the corpus is kept for so many processes of this machine."""
        return Storage(self.cache, self.cache_dir, self.workers, processes)

    @property
    def held_out(self) -> dict:
        """Return the options that :func:`ser_fast.data.splits.split` takes, by name."""
        names = ("test_speakers", "test_fold", "test_fraction", "validation", "valid_fraction", "seed")
        names = (*names, "test_groups", "allow_missing_classes")
        return {name: getattr(self, name) for name in names}


LOGGERS = ("tensorboard",)


def _names(given: str | int | list[str | int]) -> list[str]:
    """Return names, separated by commas or in a list, sorted and without repetition."""
    names = given if isinstance(given, list) else [name.strip() for name in str(given).split(",")]
    return sorted({str(name) for name in names} - {""})


# Options that runs of older versions lack, with the values that those runs had.
LATER = {
    "labels": {},
    "targets": [],
    "test_data": "",
    "test_groups": [],
    "allow_missing_classes": False,
    "columns": {},
    "log": [],
    "features": "",
    "features_layer": -1,
}
# The same for options of a model.
_LATER_OF_MODELS = {model: {"features": 0, "frame_rate": 50.0} for model in ("bigru_mha", "baseline")}


def resumed(config: TrainConfig) -> TrainConfig:
    """Return the options with validation "random" instead of "auto" if the run in ``config.out`` began with that."""
    try:
        kept = json.loads((Path(config.out) / "config.json").read_text())
        before = kept.get("validation") if config.validation == "auto" else None
    except (OSError, ValueError, RecursionError, AttributeError):  # RunFolder refuses such a file
        return config
    return replace(config, validation="random") if before == "random" else config


def run_options(config: TrainConfig, options: dict) -> dict:
    """Return the options of a run as config.json keeps and ``--config`` reads them, the model's under its name."""
    return asdict(config) | {config.model: options}


def run_folder(path: Path, options: dict) -> RunFolder:
    """Return the folder of a run with these options.

    A resumed run may read, write and compute elsewhere; the trainer compares the corpus itself. It may have more
    seeds. It may have more epochs unless its schedule depends on their number or it chooses among candidates, since
    a longer run could choose another one.

    Args:
        path: the folder.
        options: options of :class:`TrainConfig`, of :class:`ser_fast.training.folds.Folds` and of the model.
    """
    fixed = options.get("schedule", "constant") != "constant" or options.get("choose")
    return RunFolder(
        path, options, required=("epochs", "seed"), later=LATER | _LATER_OF_MODELS,
        free=("data", "test_data", "features", "out", "device", "skip_bad", "cache", "cache_dir", "workers", "log"),
        may_grow=("seeds",) if fixed else ("seeds", "epochs"),
    )  # fmt: skip


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
WARM_UP = 0.05  # share of the steps of a cosine schedule


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate after the share ``progress`` of all steps, in 0..1."""
    if config.schedule == "constant":
        return config.learning_rate
    rise = min(1.0, (progress + 1e-3) / WARM_UP)
    return config.learning_rate * rise * (1 + math.cos(math.pi * progress)) / 2

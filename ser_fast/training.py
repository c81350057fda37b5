"""Training: a corpus, a model and options in; a run folder with metrics, checkpoints, figures and a report out."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ser_fast.audio import read_corpus
from ser_fast.batches import LengthSortedBatches
from ser_fast.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    write_atomically,
)
from ser_fast.corpora import load_corpus
from ser_fast.metrics import classification
from ser_fast.models import MODELS, BiGRUMHA


@dataclass
class TrainConfig:
    """Options of a training run.

    Args:
        data: "synthetic", "emodb:PATH", "folders:PATH", "manifest:PATH", or a path whose kind is recognised.
        out: run folder; an interrupted run with the same options goes on where it was.
        model: which model; its own options are under its name.
        test_speakers: speakers held out for the test, separated by commas.
        test_fraction: without test_speakers, the part of the utterances drawn for the test, in 0..1.
        valid_fraction: part of the training utterances that chooses the best epoch, in 0..1.
        epochs: passes over the training part.
        batch_size: utterances of a batch.
        learning_rate: of Adam.
        weight_decay: of Adam.
        loss: "cross_entropy", or "l1" between the softmax and the one-hot label.
        clip: largest norm of the gradient.
        seed: of the splits, the initial weights, the batch order and the dropout.
        skip_bad: skip and count unreadable files instead of stopping.
        device: "auto", "cpu" or "cuda".
    """

    data: str = "synthetic"
    out: Path = Path("runs/train")
    model: Literal["cgru", "bigru_mha"] = "bigru_mha"
    test_speakers: str = ""
    test_fraction: float = 0.2
    valid_fraction: float = 0.1
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    loss: Literal["cross_entropy", "l1"] = "cross_entropy"
    clip: float = 5.0
    seed: int = 0
    skip_bad: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        for name, low in (("epochs", 1), ("batch_size", 1)):
            _require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")
        for name in ("learning_rate", "clip"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("test_fraction", "valid_fraction"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1, both excluded")
        _require(self.device != "cuda" or torch.cuda.is_available(), "device", "cuda", "cpu: torch sees no GPU here")


def _require(good: bool, name: str, value, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}; it must be {allowed}")


@dataclass
class Split:
    """Indices of the utterances of each part, and the sentence that says how they were chosen."""

    train: list[int]
    valid: list[int]
    test: list[int]
    protocol: str


def split(speakers: Sequence[str], labels: Sequence[int], config: TrainConfig) -> Split:
    """Hold out speakers, or a stratified draw of utterances; then draw the validation part from the rest."""
    everything = list(range(len(labels)))
    if config.test_speakers:
        names = sorted(config.test_speakers.split(","))
        unknown = sorted(set(names) - set(speakers))
        _require(not unknown, "test_speakers", unknown, f"among {sorted(set(speakers))}")
        test = [index for index in everything if speakers[index] in names]
        rest = [index for index in everything if speakers[index] not in names]
        _require(bool(rest), "test_speakers", config.test_speakers, "fewer than all speakers")
        held_out = f"speakers {', '.join(names)} held out"
    else:
        rest, test = _draw(everything, labels, config.test_fraction, "test_fraction", config.seed)
        held_out = f"a random {config.test_fraction:.0%} of the utterances held out, speakers shared"
    train, valid = _draw(rest, labels, config.valid_fraction, "valid_fraction", config.seed)
    chosen = f"best epoch chosen on a random {config.valid_fraction:.0%} of the training utterances"
    return Split(train, valid, test, f"{held_out}; {chosen}")


def _draw(index: list[int], labels: Sequence[int], fraction: float, name: str, seed: int) -> tuple[list, list]:
    try:
        return train_test_split(index, test_size=fraction, random_state=seed, stratify=[labels[i] for i in index])
    except ValueError as error:
        raise ValueError(f"{name} is {fraction}; it must leave every class in both parts: {error}") from error


@dataclass
class Dataset:
    """A corpus in memory."""

    name: str
    waves: list[Tensor]
    labels: list[int]
    speakers: list[str]
    names: list[str]
    classes: list[str]
    skipped: list[str]

    def batches(self, index: Sequence[int], batch_size: int) -> LengthSortedBatches:
        return LengthSortedBatches([self.waves[i] for i in index], [self.labels[i] for i in index], batch_size)


def run_options(config: TrainConfig, options: dict) -> dict:
    """What config.json keeps and ``--config`` reads: the run's options, and the model's under its name."""
    return json.loads(json.dumps(asdict(config) | {config.model: options}, default=str))


def check_folder(config: TrainConfig, options: dict) -> None:
    """Refuse a folder where another run lies; the same run, or a longer one of the same, goes on there."""
    path = Path(config.out) / "config.json"
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not readable JSON: {error}; remove the folder, or name a new one as out"
        ) from error
    now = run_options(config, options)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    changed = [name for name in changed if not (name == "epochs" and now["epochs"] > before["epochs"])]
    allowed = "a new folder"
    _require(not changed, "out", f"{config.out}, where a run with another {', '.join(changed)} lies", allowed)


@contextmanager
def only_writer(folder: Path):
    """Hold the folder for this process; the system lets go of it however the process ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out is {folder}, where another process is training; it must be a new folder") from None
        yield


def load_dataset(spec: str, sample_rate: int, skip_bad: bool = False) -> Dataset:
    corpus = load_corpus(spec)
    utterances, waves, errors = read_corpus(corpus.utterances, sample_rate, skip_bad)
    if not utterances:
        raise ValueError(f"data is {spec}; it must hold at least one readable utterance")
    return Dataset(
        corpus.name,
        waves,
        [corpus.classes.index(utterance.label) for utterance in utterances],
        [utterance.speaker for utterance in utterances],
        [utterance.name for utterance in utterances],
        corpus.classes,
        [str(error) for error in errors],
    )


def fit_statistics(model: nn.Module, batches: LengthSortedBatches) -> None:
    """Set the spectrogram's mean and standard deviation per bin from the valid frames of these batches."""
    spectrogram = model.spectrogram
    count, total, squares = 0, 0.0, 0.0
    with torch.no_grad():
        for batch in batches.epoch():
            spec, lengths = spectrogram(batch.wave, batch.lengths)
            spec = spec.double()
            count += int(lengths.sum())
            total = total + spec.sum((0, 1))
            squares = squares + spec.square().sum((0, 1))
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    # A bin that hardly varies would turn rounding into a signal.
    std = variance.sqrt().clamp(min=1e-6 * float(variance.sqrt().max()) + 1e-30)
    spectrogram.set_statistics(mean.float(), std.float())


def loss_function(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "cross_entropy":
        return F.cross_entropy
    return lambda logits, labels: F.l1_loss(logits.softmax(-1), F.one_hot(labels, logits.shape[-1]).to(logits.dtype))


@dataclass
class Progress:
    """What a run knows after some epochs; all of it goes through the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    rows: list[dict] = field(default_factory=list)


@torch.no_grad()
def evaluate(model: nn.Module, batches: LengthSortedBatches, classes: list[str], device: torch.device) -> dict:
    """:func:`ser_fast.metrics.classification` and the mean cross-entropy of a part."""
    model.eval()
    truth, predicted, loss = [], [], 0.0
    for batch in batches.epoch():
        logits = model(batch.wave.to(device), batch.lengths.to(device)).cpu()
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        truth += batch.labels.tolist()
        predicted += logits.argmax(1).tolist()
    return classification(truth, predicted, classes) | {"loss": loss / len(truth)}


class Trainer:
    """One run: builds or resumes the model, trains it epoch by epoch and keeps the run folder up to date.

    Args:
        config: the run's options.
        options: the model's keyword arguments.
        dataset: the corpus in memory.
        report: called with every batch's running figures (``epoch``, ``done``, ``total``, ``loss``, ``accuracy``,
            ``utterances_per_second``).
    """

    def __init__(
        self, config: TrainConfig, options: dict, dataset: Dataset, report: Callable[[dict], None] | None = None
    ):
        self.config, self.options, self.dataset = config, options, dataset
        self.report = report or (lambda row: None)
        self.folder = Path(config.out)
        self.device = torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else
                                   config.device.replace("auto", "cpu"))  # fmt: skip
        self.split = split(dataset.speakers, dataset.labels, config)
        missing = set(range(len(dataset.classes))) - {dataset.labels[i] for i in self.split.train}
        names = [dataset.classes[label] for label in sorted(missing)]
        _require(not names, "data", f"without training utterances of {names}", "trained on every class")
        self.batches = {
            part: dataset.batches(getattr(self.split, part), config.batch_size) for part in ("train", "valid", "test")
        }
        torch.manual_seed(config.seed)
        self.model = MODELS[config.model](len(dataset.classes), **options)
        if isinstance(self.model, BiGRUMHA):
            fit_statistics(self.model, self.batches["train"])
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.loss = loss_function(config.loss)
        self.progress = Progress()
        self._open_folder()

    def run(self) -> dict:
        """Train what is left and return the test's metrics, which ``summary.json`` keeps."""
        with only_writer(self.folder):
            while self.progress.epoch < self.config.epochs:
                self._train_epoch()
                self._keep()
            return self._finish()

    def _open_folder(self) -> None:
        check_folder(self.config, self.options)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        last = self.folder / "last.safetensors"
        if last.is_file():
            checkpoint = load_checkpoint(last)
            self.model.load_state_dict(checkpoint.weights)
            restore_optimizer(self.optimizer, checkpoint.optimizer)
            self.progress = Progress(**checkpoint.progress)
        content = json.dumps(run_options(self.config, self.options), indent=1) + "\n"
        write_atomically(self.folder / "config.json", content.encode())

    def _train_epoch(self) -> None:
        epoch = self.progress.epoch
        # Every epoch draws from its own seed, so a resumed run draws what an uninterrupted one would have.
        seed = self.config.seed * 1_000_003 + epoch + 1
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.model.train()
        total = len(self.split.train)
        done, correct, loss_sum = 0, 0, 0.0
        start = time.perf_counter()
        for batch in self.batches["train"].epoch(generator):
            batch = batch.to(self.device)
            logits = self.model(batch.wave, batch.lengths)
            loss = self.loss(logits, batch.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            self.optimizer.step()
            done += len(batch.labels)
            loss_sum += loss.item() * len(batch.labels)
            correct += int((logits.argmax(1) == batch.labels).sum())
            if not math.isfinite(loss_sum):
                raise FloatingPointError(
                    f"the loss is {loss_sum} in epoch {epoch + 1}; a smaller learning_rate may help"
                )
            seconds = time.perf_counter() - start
            self.report({"epoch": epoch + 1, "done": done, "total": total, "loss": loss_sum / done,
                         "accuracy": correct / done, "utterances_per_second": done / seconds})  # fmt: skip
        seconds = time.perf_counter() - start
        valid = evaluate(self.model, self.batches["valid"], self.dataset.classes, self.device)
        row = {
            "epoch": epoch + 1,
            "loss": loss_sum / total,
            "accuracy": correct / total,
            "utterances": total,
            "seconds": seconds,
            "valid_loss": valid["loss"],
            "valid_accuracy": valid["accuracy"],
            "valid_recall": valid["recall"],
        }
        self.progress.epoch = epoch + 1
        self.progress.rows.append(row)
        self.report(row)

    def _keep(self) -> None:
        """Write the epoch. last.safetensors comes last: until it is there, a resumed run repeats the epoch."""
        row, progress = self.progress.rows[-1], self.progress
        # A small loss breaks the ties of a small validation part.
        score = row["valid_recall"] - 1e-3 * min(row["valid_loss"], 100.0)
        weights = self.model.state_dict()
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, row["epoch"]
            save_checkpoint(self.folder / "best.safetensors", self._checkpoint(weights, {"epoch": row["epoch"]}, {}))
        lines = "".join(json.dumps(entry) + "\n" for entry in progress.rows)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())
        state = self._checkpoint(weights, asdict(progress), optimizer_tensors(self.optimizer))
        save_checkpoint(self.folder / "last.safetensors", state)

    def _checkpoint(self, weights: dict, progress: dict, optimizer: dict) -> Checkpoint:
        return Checkpoint(self.config.model, self.options, self.dataset.classes, weights, progress, optimizer)

    def _finish(self) -> dict:
        """Test the best and the last epoch; the best is the one the report shows."""
        summary = {
            "protocol": self.split.protocol,
            "data": self.dataset.name,
            "utterances": {part: len(getattr(self.split, part)) for part in ("train", "valid", "test")},
            "skipped": self.dataset.skipped,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "seconds_per_epoch": sorted(row["seconds"] for row in self.progress.rows)[len(self.progress.rows) // 2],
            "best_epoch": self.progress.best_epoch,
            "last": evaluate(self.model, self.batches["test"], self.dataset.classes, self.device),
        }
        path = self.folder / "best.safetensors"
        self.model.load_state_dict(load_checkpoint(path).weights)
        summary["best"] = evaluate(self.model, self.batches["test"], self.dataset.classes, self.device)
        write_atomically(self.folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        return summary

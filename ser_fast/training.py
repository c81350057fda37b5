"""Training: a corpus, a model and options in; a run folder with metrics, checkpoints, figures and a report out."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast import distributed
from ser_fast.batches import Batch, LengthSortedBatches
from ser_fast.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from ser_fast.dataset import Dataset, split
from ser_fast.metrics import classification
from ser_fast.models import MODELS, BiGRUMHA
from ser_fast.run_folder import RunFolder


@dataclass
class TrainConfig:
    """Options of a training run.

    Args:
        data: "synthetic", "emodb:PATH", "folders:PATH", "manifest:PATH", or a path whose kind is recognised.
        out: run folder; an interrupted run with the same options goes on where it was.
        model: which model; its own options are under its name.
        test_speakers: speakers held out for the test, separated by commas or as a list; in YAML '03' needs quotes.
        test_fraction: without test_speakers, the part of the utterances drawn for the test, in 0..1.
        valid_fraction: part of the training utterances that chooses the best epoch, in 0..1.
        epochs: passes over the training part.
        batch_size: utterances of a batch.
        learning_rate: of Adam.
        weight_decay: of Adam.
        loss: "cross_entropy", or "l1", the absolute difference of the softmax and the one-hot label.
        clip: largest norm of the gradient, inf for no limit.
        seed: of the splits, the initial weights, the batch order and the dropout.
        skip_bad: skip and count unreadable files instead of stopping.
        device: "auto", "cpu" or "cuda"; under torchrun every process takes a GPU of its own.
    """

    data: str = "synthetic"
    out: Path = Path("runs/train")
    model: Literal["cgru", "bigru_mha"] = "bigru_mha"
    test_speakers: str | int | list[str | int] = ""
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
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            _require(getattr(self, name) >= low, name, getattr(self, name), f"at least {low}")
        _require(self.seed < 2**32, "seed", self.seed, "below 2^32")
        _require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "above 0 and finite")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "0 or more and finite")
        _require(self.clip > 0, "clip", self.clip, "above 0")
        for name in ("test_fraction", "valid_fraction"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1, both excluded")
        _require(self.device != "cuda" or torch.cuda.is_available(), "device", "cuda", "cpu: torch sees no GPU here")
        gpus = torch.cuda.device_count()
        _require(self.device == "cpu" or not 0 < gpus <= distributed.local_rank(), "device", self.device,
                 f"cpu, or --nproc-per-node at most {gpus}: torch sees no more GPUs here")  # fmt: skip
        _require(Path(self.out).resolve() != Path.cwd(), "out", f"'{self.out}'", "a folder of its own")
        given = self.test_speakers if isinstance(self.test_speakers, list) else str(self.test_speakers).split(",")
        self.test_speakers = ",".join(sorted({str(name).strip() for name in given} - {""}))

    @property
    def held_out(self) -> dict:
        """What :func:`ser_fast.dataset.split` takes of these options."""
        names = self.test_speakers.split(",") if self.test_speakers else []
        return {"test_speakers": names, "test_fraction": self.test_fraction, "valid_fraction": self.valid_fraction,
                "seed": self.seed}  # fmt: skip


def _require(good: bool, name: str, value, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}; it must be {allowed}")


def run_options(config: TrainConfig, options: dict) -> dict:
    """What config.json keeps and ``--config`` reads: the run's options, and the model's under its name."""
    return asdict(config) | {config.model: options}


def fit_statistics(model: nn.Module, batches: LengthSortedBatches) -> None:
    """Set the spectrogram's mean and standard deviation per bin from the valid frames of these batches."""
    spectrogram = model.spectrogram
    count = torch.zeros((), dtype=torch.float64)
    total, squares = torch.zeros(2, *spectrogram.mean.shape, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches.epoch():
            if batch.index:
                spec, lengths = spectrogram(batch.wave, batch.lengths)
                spec = spec.double()
                count += lengths.sum()
                total += spec.sum((0, 1))
                squares += spec.square().sum((0, 1))
    distributed.sum_over_ranks([count, total, squares])
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
    """What a run knows after some epochs; all of it goes through the checkpoint. ``corpus`` is the data's digest."""

    corpus: str
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    rows: list[dict] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: LengthSortedBatches,
    classes: list[str],
    device: torch.device,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict:
    """:func:`ser_fast.metrics.classification` and the mean loss of a part, the same in every process.

    Raises:
        FloatingPointError: logits that are not finite, which have no class.
    """
    model.eval()
    rows, total, finite = [], 0.0, True
    for batch in batches.epoch():
        if batch.index:
            logits = model(batch.wave.to(device), batch.lengths.to(device)).cpu()
            finite = finite and bool(torch.isfinite(logits).all())
            total += float(loss(logits, batch.labels)) * len(batch.labels)
            rows += zip(batch.labels.tolist(), logits.argmax(1).tolist())
    shares, totals, all_finite = zip(*distributed.gather((rows, total, finite)))
    if not all(all_finite):
        distributed.refuse(FloatingPointError("the model's logits are not finite; a smaller learning_rate may help"))
    truth, predicted = zip(*(row for share in shares for row in share))
    return classification(truth, predicted, classes) | {"loss": sum(totals) / len(truth)}


class Trainer:
    """One run: builds or resumes the model, trains it epoch by epoch and keeps the run folder up to date.

    The processes of one group (:mod:`ser_fast.distributed`) train together on the batches of one process: each takes
    its share of every batch, and the gradients' sum is that of the mean loss over the whole batch. Without dropout
    the result is one process's to rounding; with it, each process draws masks of its own. Rank 0 alone reads and
    writes the run folder, and a run may go on in another number of processes.

    Args:
        config: the run's options.
        options: the model's keyword arguments.
        dataset: the corpus in memory.
        folder: the run's, entered by rank 0.
        report: called with every batch's running figures (``epoch``, ``done``, ``total``, ``loss``, ``accuracy``,
            ``utterances_per_second``), with every epoch's row of ``metrics.jsonl``, and with a ``notice`` of what
            the user should know.
    """

    def __init__(
        self,
        config: TrainConfig,
        options: dict,
        dataset: Dataset,
        folder: RunFolder,
        report: Callable[[dict], None] | None = None,
    ):
        self.config, self.options, self.dataset, self.folder = config, options, dataset, folder
        self.report = report or (lambda row: None)
        self.device = distributed.device(config.device)
        self.progress = Progress(dataset.digest())
        self._compare_corpora()
        with distributed.agreed():
            self.split = split(dataset.speakers, dataset.labels, dataset.classes, **config.held_out)
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
        self.best, self.last = (folder.path / f"{name}.safetensors" for name in ("best", "last"))
        if distributed.from_rank_0(self.last.is_file):
            self._resume()
        if distributed.rank() == 0:
            folder.begin()

    def run(self) -> dict:
        """Train what is left and return the test's metrics, which ``summary.json`` keeps."""
        while self.progress.epoch < self.config.epochs:
            self._train_epoch()
            self._keep()
        return self._finish()

    def _compare_corpora(self) -> None:
        digests = distributed.gather(self.progress.corpus)
        other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), 0)
        if other:
            distributed.refuse(ValueError(
                f"data is {self.config.data}, where rank {other} of {len(digests)} finds another corpus than rank 0; "
                "it must be the same for all"
            ))  # fmt: skip

    def _resume(self) -> None:
        again = f"remove {self.folder.path} to begin again"
        try:
            checkpoint = distributed.from_rank_0(lambda: load_checkpoint(self.last))
            model = checkpoint.build(self.last)
            progress = Progress(**checkpoint.progress)
            restore_optimizer(self.optimizer, checkpoint.optimizer)
        except (CheckpointError, TypeError) as error:
            distributed.refuse(CheckpointError(f"{error}; {again}"))
        if progress.corpus != self.progress.corpus:
            distributed.refuse(ValueError(
                f"data is {self.config.data}, which is not, or no longer, the corpus that the run in "
                f"{self.folder.path} began with; name a new folder as out"
            ))  # fmt: skip
        self.model.load_state_dict(model.state_dict())
        self.progress = progress
        self.report({"notice": f"going on after epoch {progress.epoch} of {self.folder.path}"})
        try:
            distributed.from_rank_0(lambda: load_checkpoint(self.best)).build(self.best)
        except CheckpointError as error:
            # Its weights are gone; the last epoch is the best of those that are left.
            self.report({"notice": f"{error}; epoch {progress.epoch} takes the place of the best"})
            self._keep_best(self.model.state_dict())

    def _train_epoch(self) -> None:
        epoch = self.progress.epoch
        # Every epoch draws from its own seed, so a resumed run draws what an uninterrupted one would have.
        seed = self.config.seed * 1_000_003 + epoch + 1
        torch.manual_seed(seed + (distributed.rank() << 20))  # every process its own dropout
        generator = torch.Generator().manual_seed(seed)
        self.model.train()
        total = len(self.split.train)
        done, correct, loss_sum = 0, 0, 0.0
        start = time.perf_counter()
        for batch in self.batches["train"].epoch(generator):
            loss, hits = self._step(batch.to(self.device))
            done += batch.size
            loss_sum += loss * batch.size
            correct += hits
            if not math.isfinite(loss_sum):
                distributed.refuse(FloatingPointError(
                    f"the loss is {loss_sum} in epoch {epoch + 1}; a smaller learning_rate may help"
                ))  # fmt: skip
            seconds = time.perf_counter() - start
            self.report({"epoch": epoch + 1, "done": done, "total": total, "loss": loss_sum / done,
                         "accuracy": correct / done, "utterances_per_second": done / seconds})  # fmt: skip
        seconds = time.perf_counter() - start
        valid = self._evaluate("valid")
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

    def _step(self, batch: Batch) -> tuple[float, int]:
        """Mean loss and correct predictions of a whole batch, whose gradient the optimizer has followed."""
        self.optimizer.zero_grad(set_to_none=True)
        figures = next(self.model.parameters()).new_zeros(2)
        if batch.index:
            self._backward(batch, figures)
        distributed.sum_gradients(self.model, figures)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        loss, hits = figures.tolist()
        return loss, int(hits)

    def _backward(self, batch: Batch, figures: Tensor) -> None:
        """This share's part of the whole batch's gradient, mean loss and correct predictions."""
        try:
            logits = self.model(batch.wave, batch.lengths)
            loss = self.loss(logits, batch.labels) * (len(batch.index) / batch.size)
            loss.backward()
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's has no type of its own
            if "memory" not in str(error):
                raise
            seconds = batch.wave.shape[1] / self.model.spectrogram.sample_rate
            raise RuntimeError(
                f"batch_size is {self.config.batch_size}, and {len(batch.index)} utterances of up to {seconds:.1f} s "
                f"do not fit in memory; it must be smaller ({str(error).splitlines()[0]})"
            ) from error
        figures[0], figures[1] = loss.detach(), (logits.argmax(1) == batch.labels).sum()

    def _evaluate(self, part: str) -> dict:
        return evaluate(self.model, self.batches[part], self.dataset.classes, self.device, self.loss)

    def _keep(self) -> None:
        """Write the epoch. last.safetensors comes last: until it is there, a resumed run repeats the epoch."""
        progress, weights = self.progress, self.model.state_dict()
        if self._score() > progress.best_score:
            self._keep_best(weights)
        self._write("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in progress.rows))
        self._save(self.last, weights, asdict(progress), optimizer_tensors(self.optimizer))

    def _keep_best(self, weights: dict[str, Tensor]) -> None:
        self.progress.best_score, self.progress.best_epoch = self._score(), self.progress.epoch
        self._save(self.best, weights, {"epoch": self.progress.epoch}, {})

    def _score(self) -> float:
        """The last epoch's validation UA; a small loss breaks the ties of a small validation part."""
        row = self.progress.rows[-1]
        return row["valid_recall"] - 1e-3 * min(row["valid_loss"], 100.0)

    def _save(self, path: Path, *state: dict) -> None:
        if distributed.rank() == 0:
            save_checkpoint(path, Checkpoint(self.config.model, self.options, self.dataset.classes, *state))

    def _write(self, name: str, content: str) -> None:
        if distributed.rank() == 0:
            self.folder.write(name, content)

    def _finish(self) -> dict:
        """Test the last and the best epoch; the best is the one the report shows."""
        rows = self.progress.rows
        summary = {
            "protocol": self.split.protocol,
            "data": self.dataset.name,
            "utterances": {part: len(getattr(self.split, part)) for part in ("train", "valid", "test")},
            "skipped": self.dataset.skipped,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "seconds_per_epoch": sorted(row["seconds"] for row in rows)[len(rows) // 2],
            "best_epoch": self.progress.best_epoch,
            "last": self._evaluate("test"),
        }
        self.model.load_state_dict(distributed.from_rank_0(lambda: load_checkpoint(self.best)).weights)
        summary["best"] = self._evaluate("test")
        self._write("summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

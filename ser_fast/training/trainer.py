"""A training run: options, a dataset and a split in; a run folder with metrics and checkpoints out."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast._torch_compat import BatchNorm
from ser_fast.data.augmentation import Augmentation, Augmenter, SpecAugment
from ser_fast.data.batches import Batch, LengthSortedBatches
from ser_fast.data.dataset import Dataset
from ser_fast.data.failures import LIST, listing
from ser_fast.data.pace import Pace
from ser_fast.data.splits import Split
from ser_fast.models import MODELS
from ser_fast.training import distributed
from ser_fast.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from ser_fast.training.config import OPTIMIZERS, TrainConfig, learning_rate
from ser_fast.training.features import CachedFeatures
from ser_fast.training.memory import in_memory
from ser_fast.training.predictions import Prediction, described, to_csv
from ser_fast.training.progress import Progress, read_progress
from ser_fast.training.reporter import Reporter, Reporters
from ser_fast.training.run_folder import RunFolder
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import Task, task_of
from ser_fast.training.tensorboard import TensorBoard


def batch_in_memory(
    model: nn.Module, batches: LengthSortedBatches, batch: Batch
) -> contextlib.AbstractContextManager:
    """Return the context that names the batch in an error that says that memory cannot be allocated."""
    lengths = [batches.lengths[i] for i in batch.index]
    return in_memory(batches.batch_size, lengths, model.spectrogram.input_rate)


def fit_statistics(
    model: nn.Module, batches: LengthSortedBatches, report: Callable[[str], None] = lambda line: None
) -> None:
    """Set the mean and standard deviation of each bin of the model's spectrogram from the frames of these batches.

    Args:
        model: a model with ``corpus_statistics``.
        batches: the training part.
        report: called with a line now and then while a large part is processed.
    """
    spectrogram = model.spectrogram
    count = torch.zeros((), dtype=torch.float64)
    total, squares = torch.zeros(2, *spectrogram.mean.shape, dtype=torch.float64)
    pace = Pace()
    with torch.no_grad():
        for number, batch in enumerate(batches.epoch()):
            if pace.due(number / len(batches.groups)):
                report(f"statistics of the spectrograms: {number} of {len(batches.groups)} batches")
            if batch.index:
                with batch_in_memory(model, batches, batch):
                    spec, lengths = spectrogram(batch.wave, batch.lengths)
                    spec = spec.double()
                count += lengths.sum()
                total += spec.sum((0, 1))
                squares += spec.square().sum((0, 1))
    distributed.sum_over_ranks([count, total, squares])
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    # Division by the tiny deviation of a nearly constant bin would amplify rounding errors.
    std = variance.sqrt().clamp(min=1e-6 * float(variance.sqrt().max()) + 1e-30)
    spectrogram.set_statistics(mean.float(), std.float())


def spec_augment(options: Augmentation, spectrogram: nn.Module) -> SpecAugment | None:
    """Return the masks of a training run over the frames that ``spectrogram`` makes, None without masks."""
    if not (options.time_masks or options.freq_masks):
        return None
    longest = int(options.time_mask * spectrogram.sample_rate / spectrogram.hop_length)
    return SpecAugment(options.time_masks, longest, options.freq_masks, options.freq_mask)


def logits(model: nn.Module, wave: Tensor, lengths: Tensor, features: bool) -> Tensor:
    """Return the outputs of a model for waves ``[B, N]``, or for rows of cached features ``[B, D]``."""
    return model.classify(wave, lengths) if features else model(wave, lengths)


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: LengthSortedBatches,
    task: Task,
    device: torch.device,
    features: CachedFeatures | None = None,
) -> tuple[Tensor, float]:
    """Return the outputs ``[N, outputs]`` for a part, in its order, and their loss, equal in all processes.

    Args:
        model: the model; it is set to evaluation mode.
        batches: the part.
        task: defines the loss.
        device: device of the model.
        features: features that take the place of the waves, for a model that has some.

    Raises:
        FloatingPointError: an output of the model is not finite.
    """
    model.eval()
    index, rows, finite = [], [torch.empty(0, task.outputs)], True
    for batch in batches.epoch(edit=features, lazy=features is not None):
        if batch.index:
            with batch_in_memory(model, batches, batch):
                outputs = logits(model, batch.wave.to(device), batch.lengths.to(device), features is not None).cpu()
            finite = finite and bool(torch.isfinite(outputs).all())
            index += batch.index
            rows.append(outputs)
    indices, shares, all_finite = zip(*distributed.gather((index, torch.cat(rows), finite)))
    if not all(all_finite):
        distributed.refuse(FloatingPointError("the model's logits are not finite; a smaller learning_rate may help"))
    order = torch.tensor([i for index in indices for i in index]).argsort()
    outputs = torch.cat(shares)[order]
    return outputs, float(task.loss(outputs, task.targets(batches.labels)))


class Trainer:
    """A training run, new or resumed, that writes its run folder after every epoch.

    Data-parallel training (:mod:`ser_fast.training.distributed`): each rank processes a slice of every batch, and the
    summed gradient is that of the mean loss over the whole batch. Without dropout and augmentation the result equals
    that of a single process up to rounding; with them, each rank draws its own random numbers. Only rank 0 reads and
    writes the run folder, and a run may resume with another number of processes.

    Args:
        config: options of the run.
        options: keyword arguments of the model.
        dataset: the corpus.
        split: indices of the utterances to train on, to choose the best epoch by and to test on; the latter two may
            be empty.
        folder: folder of the run, entered by rank 0.
        reporter: receives the progress; None reports nothing.

    Raises:
        ValueError: the folder belongs to a run on another corpus, or the options do not fit the corpus.
        CheckpointError: the checkpoint to resume from is damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        options: dict,
        dataset: Dataset,
        split: Split,
        folder: RunFolder,
        reporter: Reporter | None = None,
    ):
        self.config, self.options, self.dataset, self.split, self.folder = config, options, dataset, split, folder
        self.predictions: list[Prediction] = []  # of the test part, once the run has finished
        self.reporter = reporter or Reporter()
        if "tensorboard" in config.log and distributed.rank() == 0:
            self.reporter = Reporters([self.reporter, TensorBoard(config, options, folder.path)])
        self.device = distributed.device(config.device)
        distributed.agree_on_choices(self.device)
        self.progress = Progress(dataset.digest(), parts=split.digest(), features=dataset.upstream)
        self._compare_corpora()
        with distributed.agreed():
            world = distributed.world()
            alone = config.loss != "ccc" or world == 1
            require(alone, f"loss is ccc in {world} processes, which share each batch", "l1 or mse")
            self.task = task_of(
                dataset.classes, config.loss, config.label_smoothing,
                sentiment_scale=dataset.sentiment_scale, targets=dataset.targets,
            )  # fmt: skip
        drawing = {"bucket": config.bucket, "balance": config.balance and bool(dataset.classes)}
        share = distributed.share()
        self.batches = {
            "train": dataset.batches(split.train, config.batch_size, share, **drawing),
            "valid": dataset.batches(split.valid, config.batch_size, share),
            "test": dataset.batches(split.test, config.batch_size, share),
        }
        torch.manual_seed(config.seed)
        self.model = MODELS[config.model](self.task.outputs, **options)
        self.task.begin(self.model, self.batches["train"].labels)
        if self.model.corpus_statistics:
            fit_statistics(self.model, self.batches["train"], self.reporter.on_notice)
        self._refuse_shares()
        self.model.to(self.device)
        self.augmenter = Augmenter(config.augment)
        self.model.spec_augment = spec_augment(config.augment, self.model.spectrogram)
        self.features = self._cached_features()
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.best, self.last = (folder.path / f"{name}.safetensors" for name in ("best", "last"))
        if distributed.from_rank_0(self.last.is_file):
            self._resume()
        if distributed.rank() == 0:
            folder.begin()
            if dataset.skipped:
                folder.write(LIST, listing(dataset.skipped))

    def _cached_features(self) -> dict[str, CachedFeatures]:
        """Return the parts whose features can be cached: noise, masks and mixup differ in every training epoch."""
        if not hasattr(self.model, "utterance_features"):
            return {}
        given = self.config.augment
        varies = given.snr or given.mixup or given.time_masks or given.freq_masks
        parts = ["valid", "test"] if varies else ["train", "valid", "test"]
        return {part: CachedFeatures(self.model, self.dataset, getattr(self.split, part)) for part in parts}

    def run(self) -> dict:
        """Train the remaining epochs, test, and return the content of ``summary.json``.

        Raises:
            FloatingPointError: the loss or an output of the model is not finite.
            RuntimeError: a batch does not fit in memory.
        """
        with contextlib.closing(self.reporter):
            while self.progress.epoch < self.config.epochs and not self._stale():
                self._train_epoch()
                self._keep()
            return self._finish()

    def _refuse_shares(self) -> None:
        """Refuse batch normalisation in several processes: each would normalise by its own share of a batch."""
        normalizes = any(isinstance(module, BatchNorm) for module in self.model.modules())
        if normalizes and distributed.world() > 1:
            distributed.refuse(ValueError(
                f"model is {self.config.model}, which normalises over batches; in {distributed.world()} processes it "
                "must be one that does not"
            ))  # fmt: skip

    def _stale(self) -> bool:
        patience = self.config.patience
        return bool(patience) and self.progress.epoch - self.progress.best_epoch >= patience

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
            progress = read_progress(self.last, checkpoint.progress)
            restore_optimizer(self.optimizer, checkpoint.optimizer)
        except CheckpointError as error:
            distributed.refuse(CheckpointError(f"{error}; {again}"))
        if progress.corpus != self.progress.corpus:
            what = f"data is {self.config.data}, whose corpus differs"
            if progress.features.get("digest") != self.progress.features.get("digest"):
                what = f"features is {self.config.features}, whose features differ"
            distributed.refuse(ValueError(
                f"{what} from the one that the run in {self.folder.path} began with; name a new folder as out"
            ))  # fmt: skip
        drawn_otherwise = not progress.parts and self.config.validation == "speakers"
        if drawn_otherwise or progress.parts not in ("", self.progress.parts):
            distributed.refuse(ValueError(
                f"out is {self.folder.path}, whose run was made by another version, which drew other parts of the "
                "corpus by the same options; name a new folder as out"
            ))  # fmt: skip
        self.model.load_state_dict(model.state_dict())
        self.task.restore(self.model, checkpoint.standardised)
        self.progress = progress
        self.reporter.on_resume(progress.rows)
        self.reporter.on_notice(f"resuming after epoch {progress.epoch} of {self.folder.path}")
        try:
            distributed.from_rank_0(lambda: load_checkpoint(self.best)).build(self.best)
        except CheckpointError as error:
            # The best weights are lost; those of the last epoch replace them.
            self.reporter.on_notice(f"{error}; epoch {progress.epoch} replaces it as the best")
            self._keep_best(self.model.state_dict())

    def _train_epoch(self) -> None:
        epoch = self.progress.epoch
        # Each epoch has its own seed, so that a resumed run draws the same numbers as an uninterrupted one.
        seed = self.config.seed * 1_000_003 + epoch + 1
        torch.manual_seed(seed + (distributed.rank() << 20))  # dropout differs between processes
        generator = torch.Generator().manual_seed(seed)
        self.model.train()
        done, correct, loss_sum, steps = 0, 0, 0.0, len(self.batches["train"])
        start = time.perf_counter()
        batches = self.batches["train"].epoch(generator, self._edit, lazy="train" in self.features)
        for step, batch in enumerate(batches):
            rate = learning_rate(self.config, (epoch + step / steps) / self.config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with batch_in_memory(self.model, self.batches["train"], batch):
                loss, hits = self._step(batch.to(self.device))
            done += batch.size
            loss_sum += loss * batch.size
            correct += hits
            if not math.isfinite(loss_sum):
                distributed.refuse(FloatingPointError(
                    f"the loss is {loss_sum} in epoch {epoch + 1}; a smaller learning_rate may help"
                ))  # fmt: skip
            seconds = time.perf_counter() - start
            accuracy = correct / done if self.task.counts else None
            self.reporter.on_batch(epoch + 1, (step + 1) / steps, loss_sum / done, accuracy, done / seconds)
        row = {
            "epoch": epoch + 1,
            "loss": loss_sum / done,
            **({"accuracy": correct / done} if self.task.counts else {}),
            "utterances": done,
            "seconds": time.perf_counter() - start,
        }
        if self.split.valid:
            valid = self._evaluate("valid")[0]
            row |= {f"valid_{name}": value for name, value in valid.items() if isinstance(value, float)}
            row["score"] = self.task.score(valid)
        self.progress.epoch = epoch + 1
        self.progress.rows.append(row)
        self.reporter.on_epoch(row)

    def _edit(self, waves: Sequence[Tensor], index: Sequence[int]) -> list[Tensor]:
        """Return the utterances of a training batch augmented, or their features where these are cached."""
        if "train" in self.features:
            return self.features["train"](waves, index, self.augmenter.speeds(len(waves)))
        return self.augmenter.waves(waves, index)

    def _step(self, batch: Batch) -> tuple[float, int]:
        """Do one optimizer step; return the mean loss and the correct predictions of the whole batch."""
        self.optimizer.zero_grad(set_to_none=True)
        numbers = next(self.model.parameters()).new_zeros(2)
        if batch.index:
            self._backward(batch, numbers)
        distributed.sum_gradients(self.model, numbers)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        loss, hits = numbers.tolist()
        return loss, int(hits)

    def _backward(self, batch: Batch, numbers: Tensor) -> None:
        """Compute this share's part of the gradient, and of the mean loss and the correct predictions."""
        targets = self.task.targets(batch.labels).to(batch.wave)
        wave, lengths, targets = self.augmenter.mix(batch.wave, batch.lengths, targets)
        branches = self._branches(wave, lengths)
        shares = getattr(self.model, "shares", [1.0])  # of the branches in the outputs
        outputs = sum(share * branch for share, branch in zip(shares, branches, strict=True))
        loss = sum(self.task.loss(branch, targets) for branch in branches) / len(branches)
        loss = loss * (len(batch.index) / batch.size)
        loss.backward()
        numbers[0], numbers[1] = loss.detach(), self.task.hits(outputs, targets)

    def _branches(self, wave: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return the outputs of each branch of a model that has some, whose losses are averaged, or the only ones."""
        cached = "train" in self.features
        if not hasattr(self.model, "branch_logits"):
            return [logits(self.model, wave, lengths, cached)]
        return self.model.branch_logits(*((wave, lengths) if cached else self.model.features(wave, lengths)))

    def _evaluate(self, part: str) -> tuple[dict, Tensor]:
        """Return the metrics of a part, including its mean loss, and the outputs."""
        outputs, loss = predict(self.model, self.batches[part], self.task, self.device, self.features.get(part))
        predicted = self.task.predict(outputs)
        return self.task.metrics(self.batches[part].labels, predicted) | {"loss": loss}, outputs

    def _keep(self) -> None:
        """Write the epoch; last.safetensors comes last, since a resumed run repeats the epoch until it is written."""
        progress, weights = self.progress, self.model.state_dict()
        if self._score() > progress.best_score:
            self._keep_best(weights)
        self._write("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in progress.rows))
        kept, standardised = self.task.kept(weights)
        state = kept, asdict(progress), optimizer_tensors(self.optimizer)
        self._save(self.last, *state, standardised=standardised)

    def _keep_best(self, weights: dict[str, Tensor]) -> None:
        self.progress.best_score, self.progress.best_epoch = self._score(), self.progress.epoch
        shortest = min(self.batches["train"].lengths) / self.model.spectrogram.input_rate
        about = {"epoch": self.progress.epoch, "shortest": shortest}  # in seconds
        about |= {"data": self.dataset.name, "corpus": self.progress.corpus}
        about |= {"features": self.dataset.upstream} if self.dataset.upstream else {}
        self._save(self.best, self.task.kept(weights)[0], about, {})

    def _score(self) -> float:
        """Return the score of the last epoch, higher is better; without a validation part it is the epoch."""
        return self.progress.rows[-1].get("score", float(self.progress.epoch))

    def _save(self, path: Path, *state: dict, **more: dict) -> None:
        if distributed.rank() == 0:
            about = self.config.model, self.options, self.dataset.classes
            save_checkpoint(path, Checkpoint(*about, *state, targets=self.dataset.targets, **more))

    def _write(self, name: str, content: str) -> None:
        if distributed.rank() == 0:
            self.folder.write(name, content)

    def _over_speakers(self, outputs: Tensor) -> dict:
        """Return the measures of each test speaker and their intervals over the speakers."""
        speakers = [self.dataset.speakers[i] for i in self.split.test]
        found = by_speaker(self.task, speakers, self.batches["test"].labels, self.task.predict(outputs))
        del found["metrics"]
        return found

    def _finish(self) -> dict:
        """Test the weights of the last and of the best epoch if there is a test part, and write the summary."""
        rows = self.progress.rows
        self.task.finish(self.model)
        summary = {
            "protocol": self.split.protocol,
            "data": self.dataset.name,
            "test_data": self.dataset.test_data,
            "labels": self.config.labels,
            "missing_classes": self.split.missing,
            "utterances": {part: len(getattr(self.split, part)) for part in ("train", "valid", "test")},
            "skipped": self.dataset.skipped,
            "passed_over": self.dataset.passed_over,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "seconds_per_epoch": sorted(row["seconds"] for row in rows)[len(rows) // 2],
            "corpus": self.progress.corpus,
            "epochs": self.config.epochs,
            "best_epoch": self.progress.best_epoch,
            **({} if self.dataset.classes else {"targets": self.dataset.targets}),
        }
        if self.split.test:
            summary["last"] = self._evaluate("test")[0]
        self.model.load_state_dict(distributed.from_rank_0(lambda: load_checkpoint(self.best)).weights)
        if self.split.test:
            summary["best"], outputs = self._evaluate("test")
            summary |= self._over_speakers(outputs)
            self.predictions = described(self.dataset, self.split.test, self.task, outputs)
            self._write("predictions.csv", to_csv(self.predictions, self.dataset.classes, self.dataset.targets))
        self._write("summary.json", json.dumps(summary, indent=1) + "\n")
        self.reporter.on_finish(summary)
        return summary

"""Experiment `time`: training epochs with our GRU, torch's GRU and torch's LSTM in the same models."""

import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fast import backends
from ser_fast.backends import dispatch
from ser_fast.backends.info import info
from ser_fast.data.batches import LengthSortedBatches
from ser_fast.data.dataset import load_dataset, speakers
from ser_fast.experiments import figures, published
from ser_fast.experiments.settings import Runner
from ser_fast.experiments.tables import Result, Table
from ser_fast.models import MODELS
from ser_fast.models.peers import ReferenceRecurrence, with_recurrence, with_torch
from ser_fast.training import distributed
from ser_fast.training.config import OPTIMIZERS, TrainConfig
from ser_fast.training.folds import plan
from ser_fast.training.task import Task, task_of
from ser_fast.training.trainer import fit_statistics

SYSTEMS = {"CGRU": "CGRU", "BiGRU-MHA": "Bi-GRU + MHA"}
OURS, OURS_AFTER = "ours, reset_after=False", "ours, reset_after=True"
# Relative to the largest logit: float32 sums in another order on CPU, tf32 products on a GPU.
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
ROUNDS = {"full": 3, "quick": 3, "long": 3, "tiny": 1}


@torch.inference_mode()
def check(name: str, model: nn.Module, wave: Tensor, lengths: Tensor) -> float:
    """Return the largest difference of the logits from the reference's, relative to the largest logit.

    Raises:
        RuntimeError: if it is above :data:`TOLERANCE`: wrong results are not timed.
    """
    model.eval()
    found, wanted = model(wave, lengths), with_recurrence(model, ReferenceRecurrence(model.rnn)).eval()(wave, lengths)
    model.train()
    error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error <= TOLERANCE[wave.device.type]:
        raise RuntimeError(f"{name} differs from the reference by {error:.1e} of the largest logit, not timed")
    return error


def epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: LengthSortedBatches,
    task: Task,
    clip: float,
    most: int,
) -> float:
    """Return the seconds of a training epoch or its first ``most`` batches, data loading and updates included."""
    device = next(model.parameters()).device
    start = time.perf_counter()
    for number, batch in enumerate(batches.epoch(torch.Generator().manual_seed(0))):
        if number == most:
            break
        batch, targets = batch.to(device), task.targets(batch.labels).to(device)
        optimizer.zero_grad(set_to_none=True)
        task.loss(model(batch.wave, batch.lengths), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(name: str, runner: Runner) -> tuple[dict[str, list[float]], float, str, str]:
    """Time a model with each recurrence.

    Returns:
        Seconds of each variant's epochs, the error of our logits, the protocol, and the machine.
    """
    system = runner.system(SYSTEMS[name])
    runner.record(SYSTEMS[name])
    config, options = runner.configure(system)
    config = plan(replace(config, out=runner.runs), runner.folds, speakers(runner.corpus))[0][0].config
    device = distributed.device(config.device)
    build = MODELS[config.model]
    task = task_of(runner.corpus.classes, config.loss)
    torch.manual_seed(config.seed)
    model, after = (build(task.outputs, **options | {"reset_after": form}) for form in (False, True))
    dataset = load_dataset(runner.corpus, model.spectrogram.sample_rate, config.skip_bad, storage=config.storage())
    split = dataset.split(**config.held_out)
    batches = dataset.batches(split.train, config.batch_size)
    if model.corpus_statistics:
        for each in (model, after):
            fit_statistics(each, batches)
    few = next(iter(batches.epoch())).to(device)
    model, after = model.to(device), after.to(device)
    error = max(check(name, each, few.wave[:4], few.lengths[:4]) for each in (model, after))
    models = {OURS: model, OURS_AFTER: after} | with_torch(model)
    seconds = _timed(models, config, batches, task, ROUNDS[runner.settings.scale])
    return seconds, error, split.protocol, _machine(device)


def _timed(
    models: dict[str, nn.Module], config: TrainConfig, batches: LengthSortedBatches, task: Task, rounds: int
) -> dict[str, list[float]]:
    """Time epochs of all variants in turn, so that a change of the machine's load affects all; one batch warms up."""
    optimizers = {
        name: OPTIMIZERS[config.optimizer](model.train().parameters(), lr=config.learning_rate)
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            most = 1 if number == 0 else len(batches)
            seconds[name].append(epoch(model, optimizers[name], batches, task, config.clip, most))
    return {name: values[1:] for name, values in seconds.items()}


def faster(medians: dict[str, float]) -> dict[str, str]:
    """Return the faster of torch's two variants, padded or packed, by cell."""
    ways = {cell: [f"torch {cell}, {way}" for way in ("padded", "packed")] for cell in ("GRU", "LSTM")}
    return {cell: min(names, key=medians.__getitem__) for cell, names in ways.items()}


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """Return ratios of the medians: effect of the cell, of the kernels, and of both, with torch's faster variant."""
    best = {cell: medians[name] for cell, name in faster(medians).items()}
    return {"torch GRU / torch LSTM": best["GRU"] / best["LSTM"]} | {
        f"{name} / torch {cell}": medians[name] / best[cell] for name in (OURS, OURS_AFTER) for cell in best
    }


EFFECTS = {"torch GRU / torch LSTM": "the cell"} | {
    f"{name} / torch {cell}": f"{what}, {form} form"
    for name, form in ((OURS, "the papers'"), (OURS_AFTER, "torch's"))
    for cell, what in (("GRU", "the kernels"), ("LSTM", "cell and kernels"))
}


def timing(runner: Runner) -> Result:
    """Time training epochs of both models."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    results = {name: measure(name, runner) for name in SYSTEMS}
    seconds = {name: found for name, (found, *_) in results.items()}
    medians = {
        name: {key: statistics.median(values) for key, values in found.items()} for name, found in seconds.items()
    }
    gains = {name: ratios(found) for name, found in medians.items()}
    shares = [
        [name, key, EFFECTS[key], f"{100 * value:.0f}",
         f"{published.TIME_OF_LSTM:.0f}" if name == "CGRU" and key.endswith("LSTM") else published.NOT_GIVEN]
        for name, found in gains.items()
        for key, value in found.items()
    ]  # fmt: skip
    rows = [
        [name, key, f"{medians[name][key]:.2f}", f"{min(values):.2f} to {max(values):.2f}"]
        for name, found in seconds.items()
        for key, values in found.items()
    ]
    series = {key: [found[key] for found in medians.values()] for key in (OURS, OURS_AFTER)} | {
        f"torch {cell}": [found[faster(found)[cell]] for found in medians.values()] for cell in ("GRU", "LSTM")
    }
    machine = results["CGRU"][3]
    title = f"A training epoch on {runner.corpus.name}: {machine}"
    cell, both = (100 * gains["CGRU"][key] for key in ("torch GRU / torch LSTM", f"{OURS} / torch LSTM"))
    return Result(
        Table(["model", "ratio of epochs", "effect of", "%", "paper %"], shares),
        lambda path: figures.bars(path, list(SYSTEMS), series, "seconds of a training epoch", title),
        {"seconds": seconds, "ratios": gains, "load": load},
        results["CGRU"][2],
        [
            f"CGRU trains in {published.TIME_OF_LSTM:.0f} % of its LSTM baseline's time: here {cell:.0f} % by the "
            f"cell alone, {both:.0f} % with our kernels."
        ],
        [
            f"{machine}. One-minute load before the first epoch: {'unknown' if load is None else f'{load:.1f}'}.",
            *_how(ROUNDS[runner.settings.scale], medians, {name: found[1] for name, found in results.items()}),
        ],
        {"Seconds of an epoch": Table(["model", "recurrence", "median", "fastest to slowest"], rows)},
    )


def _how(rounds: int, medians: dict[str, dict[str, float]], errors: dict[str, float]) -> list[str]:
    """Return notes on how the epochs were timed."""
    ways = "; ".join(f"{name}: {', '.join(faster(found).values())}" for name, found in medians.items())
    return [
        f"Median of {rounds} whole epochs (forward, backward, clipping, update) after one batch of warm-up, in turn, "
        "on the same batches. Only the recurrence differs; spectrogram, convolutions and attention are ours in every "
        "variant.",
        "The papers' GRU is reset_after=False, which torch does not have; reset_after=True is torch's.",
        f"torch's layers are timed padded and packed, and the faster counts ({ways}). Padded, the backward direction "
        "starts in the padding, which gives a different result.",
        "Largest difference of our logits from the reference's, relative to the largest logit: "
        + ", ".join(f"{error:.0e} ({name})" for name, error in errors.items()) + ".",
        "The paper describes neither its LSTM baseline nor its machine; here the baseline is the same network.",
    ]  # fmt: skip


def _machine(device: torch.device) -> str:
    """Return processor or GPU, torch version and backend as a sentence."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    if device.type == "cuda":
        tf32 = "allowed" if dispatch.tf32_allowed() else "not allowed"
        return (
            f"{torch.cuda.get_device_name(device)} ({processor}); torch {torch.__version__}; GPU backend "
            f"{backends.on_cuda}; tf32 {tf32}"
        )
    return f"{processor}; {info()['processor']}; torch {torch.__version__}"

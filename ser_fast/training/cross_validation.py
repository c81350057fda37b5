"""Cross-validation: a run for every fold and seed, and what they say together."""

import csv
import functools
import json
import math
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora import Corpus, load_corpus
from ser_fast.data.dataset import Dataset, labels, load_dataset, speakers, split_corpus
from ser_fast.data.splits import how_chosen
from ser_fast.models import MODELS
from ser_fast.training.config import TrainConfig, run_folder, run_options
from ser_fast.training.folds import HELD_OUT, Fold, Folds, changed, plan
from ser_fast.training.task import task_of
from ser_fast.training.trainer import Trainer


def cross_validate(
    config: TrainConfig, options: dict, folds: Folds, report: Callable[[str], None] = lambda line: None
) -> dict:
    """Train and test every fold, or what an interrupted call left of them, and put the results together.

    Every fold is a run folder of its own, ``out/seed0/fold01``, which ``ser-fast train`` with the options in its
    ``config.json`` repeats. Statistics, the best epoch, the choice among ``folds.choose`` and everything else that is
    fitted see its training part only.

    Args:
        config: the runs' options; ``out`` is the folder of all of them.
        options: the model's keyword arguments.
        folds: how the corpus is divided.
        report: called with a line for every fold that is done.

    Returns:
        What ``out/summary.json`` keeps: ``protocol`` in a sentence; ``runs``, each fold's ``metrics`` by its best
        epoch; ``folds`` and ``seeds``, mean and standard deviation of every measure over the runs and over the seeds'
        means; ``pooled``, the measures of all predictions together, every seed's as often.

    Raises:
        ValueError: options that do not fit the corpus, before any audio is read.
    """
    corpus = load_corpus(config.data)
    model = MODELS[config.model](2, **options)
    skipped: list[str] = []
    if config.skip_bad:  # whom it leaves to be tested is known when all is read
        good, _, errors = read_corpus(corpus.utterances, model.spectrogram.sample_rate, True)
        corpus, skipped = replace(corpus, utterances=good), [str(error) for error in errors]
    runs, sentence = plan(config, folds, speakers(corpus))
    task = task_of(corpus.classes, labels(corpus), config.loss, config.label_smoothing)
    for candidate in folds.choose:
        MODELS[config.model](2, **changed(config, options, candidate)[1])
    for run in runs:
        _check(corpus, run.config, folds)
    # Jobs decide how long it takes; with other numbers of threads results differ by rounding.
    kept = run_options(config, options) | {name: value for name, value in asdict(folds).items() if name != "jobs"}
    kept = {name: value for name, value in kept.items() if name not in HELD_OUT}
    with run_folder(Path(config.out), kept) as folder:
        folder.begin()
        summaries: dict[int, dict] = {}
        for number, summary in _results(corpus, runs, options, folds, model.spectrogram.sample_rate):
            summaries[number] = summary
            measure = "MAE {mae:.3f}" if not corpus.classes else "UA {recall:.1%}"
            report(
                f"{len(summaries):>3}/{len(runs)}  seed {runs[number].seed}, {runs[number].name} left out: "
                f"{measure.format(**summary['best'])}"
            )
        ordered = [summaries[number] for number in range(len(runs))]
        result = {
            "protocol": f"{sentence}; {how_chosen(config.validation, config.valid_fraction)}{_choice(folds)}",
            "data": corpus.name,
            "model": config.model,
            "classes": corpus.classes,
            "skipped": skipped,
            "parameters": ordered[0]["parameters"],
            "seconds_per_epoch": statistics.median(summary["seconds_per_epoch"] for summary in ordered),
            **_together(runs, ordered),
            "pooled": task.metrics(*_pooled(runs, corpus)),
        }
        folder.write("summary.json", json.dumps(result, indent=1) + "\n")
    return result


def _check(corpus: Corpus, config: TrainConfig, folds: Folds) -> None:
    """Raise what a fold's split, or the inner folds that choose for it, would, before any audio is read."""
    found = split_corpus(corpus, **config.held_out)
    if folds.choose:
        rest = [corpus.utterances[i] for i in sorted(found.train + found.valid)]
        inner = replace(corpus, utterances=[replace(utterance, part=None) for utterance in rest])
        for run in _inner(config, folds, speakers(inner)):
            split_corpus(inner, **run.config.held_out)


def _inner(config: TrainConfig, folds: Folds, there: list[str]) -> list[Fold]:
    """The runs of a fold's training part that choose for it, under ``config.out``."""
    protocol = "random" if folds.protocol == "random" else "speakers"
    return plan(replace(config, test_speakers="", test_fold=""), Folds(protocol, folds.inner_folds), there)[0]


def _results(
    corpus: Corpus, runs: list[Fold], options: dict, folds: Folds, sample_rate: int
) -> Iterator[tuple[int, dict]]:
    """Each run's number and summary, as they come."""
    if folds.jobs == 1:
        dataset = load_dataset(corpus, sample_rate, runs[0].config.skip_bad)
        for number, run in enumerate(runs):
            yield number, _chosen_run(run.config, options, dataset, folds)
        return
    threads = max(1, (os.cpu_count() or 1) // folds.jobs)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    with ProcessPoolExecutor(folds.jobs, spawn, _begin, (threads,)) as pool:
        futures = {
            pool.submit(_run_elsewhere, run.config, options, sample_rate, folds): number
            for number, run in enumerate(runs)
        }
        try:
            left = set(futures)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    """What a worker does first: it takes its cores, and sees to it that it ends when its parent does."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(config: TrainConfig, options: dict, dataset: Dataset) -> dict:
    with run_folder(config.out, run_options(config, options)) as folder:
        finished = config.out / "summary.json"
        summary = json.loads(finished.read_text()) if finished.is_file() else {}
        if (summary.get("corpus"), summary.get("epochs")) == (dataset.digest(), config.epochs):
            return summary
        return Trainer(config, options, dataset, folder).run()


def _run_elsewhere(config: TrainConfig, options: dict, sample_rate: int, folds: Folds) -> dict:
    return _chosen_run(config, options, _dataset(config.data, sample_rate, config.skip_bad), folds)


def _choice(folds: Folds) -> str:
    if not folds.choose:
        return ""
    return (
        f"; each takes the best of {len(folds.choose)} candidates in {folds.inner_folds} folds of its training part"
    )


def _chosen_run(config: TrainConfig, options: dict, dataset: Dataset, folds: Folds) -> dict:
    """A fold's run with the candidate that is best in folds of its training part, which alone that choice sees."""
    if not folds.choose:
        return _run(config, options, dataset)
    own = dataset.split(**config.held_out)
    inner = dataset.part(sorted(own.train + own.valid))
    task = task_of(dataset.classes, dataset.labels, config.loss, config.label_smoothing)
    scores = []
    for number, candidate in enumerate(folds.choose, 1):
        # Beside the fold's folder: that one is for its own run.
        out = config.out.with_name(config.out.name.replace("fold", "choice")) / f"candidate{number}"
        trial, model = changed(replace(config, out=out), options, candidate)
        runs = _inner(trial, folds, inner.speakers)
        scores.append(statistics.fmean(task.score(_run(run.config, model, inner)["best"]) for run in runs))
    best = max(range(len(scores)), key=scores.__getitem__)
    chosen = {"chosen": folds.choose[best], "scores": scores}
    return _run(*changed(config, options, folds.choose[best]), dataset) | chosen


@functools.cache
def _dataset(data: str, sample_rate: int, skip_bad: bool) -> Dataset:
    """Read once in every process."""
    return load_dataset(data, sample_rate, skip_bad)


def _together(runs: list[Fold], summaries: list[dict]) -> dict:
    rows = [
        {"seed": run.seed, "fold": run.name, "metrics": summary["best"], "epoch": summary["best_epoch"],
         "seconds_per_epoch": summary["seconds_per_epoch"]}
        | {name: summary[name] for name in ("chosen", "scores") if name in summary}
        for run, summary in zip(runs, summaries)
    ]  # fmt: skip
    names = [name for name, value in rows[0]["metrics"].items() if isinstance(value, float)]
    by_seed: dict[int, list[dict]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row["metrics"])

    def over_seeds(name: str) -> list[float | None]:
        return mean_and_deviation([statistics.fmean(found[name] for found in group) for group in by_seed.values()])

    return {
        "runs": rows,
        "folds": {name: mean_and_deviation([row["metrics"][name] for row in rows]) for name in names},
        "seeds": {name: over_seeds(name) for name in names},
    }


def mean_and_deviation(values: list[float]) -> list[float | None]:
    """Mean and sample standard deviation; None in place of the deviation of a single value."""
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def _pooled(runs: list[Fold], corpus: Corpus) -> tuple[list, list]:
    """Truth and prediction of every tested utterance, as the runs' ``predictions.csv`` keep them."""
    read = corpus.classes.index if corpus.classes else float
    truth, predicted = [], []
    for run in runs:
        with open(run.config.out / "predictions.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                truth.append(read(row["truth"]))
                predicted.append(read(row["predicted"]))
    if not all(map(math.isfinite, predicted)):
        raise FloatingPointError("predictions that are not finite have no meaning")
    return truth, predicted

"""Cross-validation: one run for every fold and seed, and their combined results."""

import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import torch

from ser_fast.data.corpora import Corpus
from ser_fast.data.dataset import Dataset, groups, own_folds, speakers, split_corpus
from ser_fast.data.failures import LIST, listing, summarise
from ser_fast.data.findings import corpus_lines
from ser_fast.data.pace import Pace
from ser_fast.data.reading import end_with_parent
from ser_fast.data.splits import Split, held_by, how_chosen, sharing
from ser_fast.data.utterance import plural
from ser_fast.training import distributed
from ser_fast.training.checkpoint import blank
from ser_fast.training.config import TrainConfig, resumed, run_folder, run_options
from ser_fast.training.corpus import corpus_of
from ser_fast.training.folds import HELD_OUT, Fold, Folds, changed, plan
from ser_fast.training.predictions import Prediction, as_rows, damaged, read_csv
from ser_fast.training.reporter import Reporter
from ser_fast.training.results import Predicted, Results
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import Task, task_of
from ser_fast.training.tensorboard import require_loggers
from ser_fast.training.trainer import Trainer
from ser_fast.training.upstream import completed, open_source, read_inputs


class Run(NamedTuple):
    """A training run: its options, those of its model, and the indices of its parts."""

    config: TrainConfig
    options: dict
    split: Split


class Candidate(NamedTuple):
    """A fold's run with one choice of options, and the trials in folds of its training part that score the choice."""

    run: Run
    trials: list[Run]


class Lines(Reporter):
    """Reports a run as lines, at most ten while it trains.

    Args:
        config: options of the run.
        report: called with each line.
    """

    def __init__(self, config: TrainConfig, report: Callable[[str], None]):
        self.config, self.report, self.pace = config, report, Pace()

    def on_notice(self, text: str) -> None:
        self.report(f"{self.config.out}: {text}")

    def on_batch(self, epoch: int, share: float, loss: float, *_) -> None:
        if self.pace.due((epoch - 1 + share) / self.config.epochs):
            self.report(f"{self.config.out}: epoch {epoch} of {self.config.epochs}, loss {loss:.3f}")


class Outcome(NamedTuple):
    """The summary and the predictions of a finished run, its folder and the utterances of its test part."""

    summary: dict
    predictions: list[Prediction]
    folder: Path
    test: list[int]


def cross_validate(
    config: TrainConfig, options: dict, folds: Folds, report: Callable[[str], None] = lambda line: None
) -> dict:
    """Train and test every fold that an earlier call has not finished, and combine the results.

    Every fold has a run folder, such as ``out/seed0/fold01``; ``ser-fast train`` with the options in its
    ``config.json`` repeats the run. Everything that is fitted (statistics, the best epoch, the choice among
    ``folds.choose``) sees the fold's training part only.

    Args:
        config: options of the runs; ``out`` is the folder of all of them.
        options: keyword arguments of the model.
        folds: how the corpus is divided.
        report: called with lines about the corpus and the progress, and with one for every finished fold.

    Returns:
        The content of ``out/summary.json``: ``protocol``, a sentence; ``runs``, each with the test ``metrics`` of its
        best epoch; ``folds`` and ``seeds``, mean and standard deviation of every measure over the runs and over the
        seeds' means; ``pooled``, the measures of all predictions of all seeds together; ``per_speaker``,
        ``intervals`` and ``bootstrap``, as :func:`ser_fast.training.speakers.by_speaker` returns them for these
        predictions, so that a speaker's UA or MAE is the mean of the seeds; ``per_target``, ``folds``, ``seeds``,
        ``per_speaker`` and ``intervals`` of each of several targets; ``missing_classes``, the classes that a fold
        could not train, each with the speakers who have all of its utterances.

    Raises:
        ValueError: the options do not fit the corpus; raised before any audio is read, except with ``skip_bad``.
        RuntimeError: a process of ``folds.jobs`` ended, or imports the script that calls this without a main guard.
    """
    return results(config, options, folds, report).summary


def results(
    config: TrainConfig, options: dict, folds: Folds, report: Callable[[str], None] = lambda line: None
) -> Results:
    """Run :func:`cross_validate`; return also the corpus and what each fold predicted."""
    if folds.jobs > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker imports a script without a main guard; its parent raises the error
    config = resumed(config)
    require_loggers(config)
    corpus = corpus_of(config)
    described = corpus_lines(corpus)  # of all utterances, also those that cannot be read
    for line in described:
        report(line)
    source = open_source(config.features, config.features_layer, distributed.device(config.device))
    options = completed(config.model, options, source)
    model = blank(config.model, 2, options)
    scale, targets = corpus.sentiment_scale, corpus.targets
    task = task_of(corpus.classes, config.loss, config.label_smoothing, sentiment_scale=scale, targets=targets)
    for candidate in folds.choose:
        chosen, of_model = changed(config, options, candidate)
        blank(config.model, 2, of_model)
        task_of(corpus.classes, chosen.loss, chosen.label_smoothing, sentiment_scale=scale, targets=targets)
    if source is not None:
        source.check(corpus.utterances)
    reading = source, model.spectrogram, corpus, config.skip_bad, report, config.storage(folds.jobs)
    dataset, skipped = None, []
    if config.skip_bad:  # the folds depend on which utterances can be read
        corpus, dataset = read_inputs(*reading)
        skipped = dataset.skipped
    if skipped:
        report(f"skipped {plural(len(skipped), 'unreadable utterance')}:")
        for line in summarise(skipped):
            report(f"  {line}")
    runs, sentence = plan_corpus(config, folds, corpus)
    planned = [_candidates(corpus, run.config, options, folds) for run in runs]
    if folds.protocol in ("parts", "logo"):
        sentence += f", {_sharing(speakers(corpus), [found[0].run.split for found in planned])}"
    # The number of jobs may change: it affects time, and results by rounding only.
    kept = run_options(config, options) | {name: value for name, value in asdict(folds).items() if name != "jobs"}
    kept = {name: value for name, value in kept.items() if name not in HELD_OUT}
    with run_folder(Path(config.out), kept) as folder:
        folder.begin()
        if skipped:
            folder.write(LIST, listing(skipped))
        outcomes: dict[int, Outcome] = {}
        dataset = dataset or read_inputs(*reading)[1]
        for number, outcome in _outcomes(dataset, planned, folds, report):
            outcomes[number] = outcome
            measure = "CCC {ccc:.3f}" if len(targets) > 1 else "MAE {mae:.3f}" if targets else "UA {recall:.1%}"
            report(
                f"{len(outcomes):>3}/{len(runs)}  seed {runs[number].seed}, {runs[number].name} left out: "
                f"{measure.format(**outcome.summary['best'])}"
            )
        ordered = [outcomes[number].summary for number in range(len(runs))]
        predictions = [row for number in range(len(runs)) for row in outcomes[number].predictions]
        missing = {run.name: found[0].run.split.missing for run, found in zip(runs, planned)}
        missing = {name: absent for name, absent in missing.items() if absent}
        result = {
            "protocol": f"{sentence}; {_chosen(config, planned)}{_choice(folds)}{_missing(missing)}",
            "data": corpus.name,
            "labels": config.labels,
            "model": config.model,
            "classes": corpus.classes,
            **({"targets": targets} if targets else {}),
            "corpus_summary": described,
            "skipped": skipped,
            "passed_over": corpus.passed_over,
            "parameters": ordered[0]["parameters"],
            "seconds_per_epoch": statistics.median(summary["seconds_per_epoch"] for summary in ordered),
            **_together(runs, ordered),
            "missing_classes": missing,
        }
        result |= _over_speakers(task, predictions, folds.seeds, result.get("per_target", {}))
        folder.write("summary.json", json.dumps(result, indent=1) + "\n")
    tested = [
        Predicted(
            f"seed {run.seed}, without {run.name}", found.folder / "best.safetensors", found.test, found.predictions
        )
        for run, found in zip(runs, (outcomes[number] for number in range(len(runs))))
    ]
    return Results(result, corpus, dataset, model.spectrogram.sample_rate, tested)


def plan_corpus(config: TrainConfig, folds: Folds, corpus: Corpus) -> tuple[list[Fold], str]:
    """Return the :func:`ser_fast.training.folds.plan` of a corpus."""
    return plan(config, folds, speakers(corpus), groups(corpus), own_folds(corpus))


def _sharing(own: list[str], splits: list[Split]) -> str:
    """Return a phrase that says whether speakers of the test parts are in the other parts of their folds too."""
    found = [sharing({own[i] for i in split.test}, {own[i] for i in split.train + split.valid}) for split in splits]
    shared = [phrase for phrase in found if phrase.startswith("speakers")]
    if not shared or len(set(found)) == 1:
        return found[0]
    return f"{shared[0].partition(' (')[0]} in {len(shared)} of {len(found)} folds"


def _candidates(corpus: Corpus, config: TrainConfig, options: dict, folds: Folds) -> list[Candidate]:
    """Return a fold's run with each choice of ``folds.choose``, or alone, before any audio is read.

    Raises:
        ValueError: the options of the fold, or of a trial in its training part, do not fit the corpus.
    """
    own = split_corpus(corpus, **config.held_out)
    if not folds.choose:
        return [Candidate(Run(config, options, own), [])]
    rest = [replace(corpus.utterances[i], part=None, folds=()) for i in sorted(own.train + own.valid)]
    inner = replace(corpus, utterances=rest)
    found = []
    for number, choice in enumerate(folds.choose, 1):
        changed_config, changed_options = changed(config, options, choice)
        # Beside the fold's own folder, which is a run folder itself.
        out = config.out.with_name(config.out.name.replace("fold", "choice")) / f"candidate{number}"
        trials = _inner(replace(changed_config, out=out, log=[]), folds, speakers(inner))
        found.append(Candidate(
            Run(changed_config, changed_options, split_corpus(corpus, **changed_config.held_out)),
            [Run(trial.config, changed_options, split_corpus(inner, **trial.config.held_out)) for trial in trials],
        ))  # fmt: skip
    return found


def _inner(config: TrainConfig, folds: Folds, there: list[str]) -> list[Fold]:
    """Return the folds of a training part with these speakers, under ``config.out``."""
    protocol = "random" if folds.protocol == "random" else "speakers"
    whole = replace(config, test_speakers="", test_groups="", test_fold="")
    return plan(whole, Folds(protocol, folds.inner_folds), there)[0]


def _outcomes(
    dataset: Dataset, planned: list[list[Candidate]], folds: Folds, report: Callable[[str], None]
) -> Iterator[tuple[int, Outcome]]:
    """Yield the number and the outcome of each fold in the order in which they finish."""
    if folds.jobs == 1:
        for number, candidates in enumerate(planned):
            yield number, _best(candidates, dataset, folds, report)
        return
    threads = max(1, (os.cpu_count() or 1) // folds.jobs)
    spawn = multiprocessing.get_context("spawn")  # a forked process has only one of torch's threads
    started = spawn.Event()
    with ProcessPoolExecutor(folds.jobs, spawn, _start_worker, (threads, started, dataset)) as pool:
        futures = {
            pool.submit(_best_in_worker, candidates, folds): number for number, candidates in enumerate(planned)
        }
        try:
            left = set(futures)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], future.result()
        except BrokenProcessPool as error:
            lost = "a process ended, perhaps for lack of memory; start it again with fewer jobs to resume"
            if not started.is_set():
                lost = (
                    "its processes import the script that calls it, which must do so below "
                    '`if __name__ == "__main__":`'
                )
            raise RuntimeError(f"jobs is {folds.jobs}, but {lost}") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_of_worker: dict[str, Dataset] = {}  # the corpus, under "dataset", in a process of a pool


def _start_worker(threads: int, started: Event, dataset: Dataset) -> None:
    """Set the number of threads, keep the corpus, and end this process when its parent ends."""
    started.set()
    torch.set_num_threads(threads)
    _of_worker["dataset"] = dataset
    end_with_parent()


def _best_in_worker(candidates: list[Candidate], folds: Folds) -> Outcome:
    return _best(candidates, _of_worker["dataset"], folds)


def _best(
    candidates: list[Candidate], dataset: Dataset, folds: Folds, report: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Run the candidate with the best mean score in its trials, which see the fold's training part only."""
    if not folds.choose:
        return _run(candidates[0].run, dataset, report)
    split = candidates[0].run.split  # the test part is the same for all candidates
    inner = dataset.part(sorted(split.train + split.valid))
    losses = {candidate.run.config.loss for candidate in candidates}
    loss = losses.pop() if len(losses) == 1 else "auto"  # the scores of all candidates are of one kind
    task = task_of(dataset.classes, loss, targets=dataset.targets)
    scores = [
        statistics.fmean(task.score(_run(trial, inner, report).summary["best"]) for trial in candidate.trials)
        for candidate in candidates
    ]
    best = max(range(len(scores)), key=scores.__getitem__)
    outcome = _run(candidates[best].run, dataset, report)
    return outcome._replace(summary=outcome.summary | {"chosen": folds.choose[best], "scores": scores})


def _run(run: Run, dataset: Dataset, report: Callable[[str], None]) -> Outcome:
    """Train and test, or read the outcome of a run that has finished before on the same corpus."""
    config = run.config
    with run_folder(config.out, run_options(config, run.options)) as folder:
        finished = folder.path / "summary.json"
        summary = _summary(finished) if finished.is_file() else {}
        if (summary.get("corpus"), summary.get("epochs")) == (dataset.digest(), config.epochs):
            predictions = read_csv(folder.path / "predictions.csv", dataset.classes, dataset.targets)
            return Outcome(summary, predictions, folder.path, run.split.test)
        trainer = Trainer(config, run.options, dataset, run.split, folder, Lines(config, report))
        return Outcome(trainer.run(), trainer.predictions, folder.path, run.split.test)


def _summary(path: Path) -> dict:
    try:
        summary = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(path, f"it is not readable JSON ({error})") from error
    if not isinstance(summary, dict):
        raise damaged(path, "it is not the summary of a run")
    return summary


def _over_speakers(task: Task, predictions: list[Prediction], seeds: int, per_target: dict[str, dict]) -> dict:
    """Return the measures of all predictions of all seeds, of each speaker, and their intervals over the speakers.

    Every seed tests the same utterances, so a mean over the predictions of all seeds is the mean of the seeds' means.

    Args:
        task: defines the measures.
        predictions: those of all runs.
        seeds: number of seeds.
        per_target: other results of each of several targets, which those of this function join.
    """
    truth, predicted = _truth_and_predicted(task, predictions)
    found = by_speaker(task, [row.speaker for row in predictions], truth, predicted)
    for part in (found, *found.get("per_target", {}).values()):
        for own in part["per_speaker"].values():
            own["utterances"] //= seeds
    if per_target:
        found["per_target"] = {name: per_target[name] | part for name, part in found["per_target"].items()}
    return {"pooled": found.pop("metrics"), **found}


def _chosen(config: TrainConfig, planned: list[list[Candidate]]) -> str:
    """Return a phrase that says which epoch's weights are tested, the same for all folds."""
    found = {candidates[0].run.split.chosen for candidates in planned}
    return found.pop() if len(found) == 1 else how_chosen(config.validation, config.valid_fraction)


def _missing(missing: dict[str, dict[str, list[str]]]) -> str:
    return "".join(
        f"; without {name} no training utterance of {', '.join(absent)} ({held_by(absent)})"
        for name, absent in missing.items()
    )


def _choice(folds: Folds) -> str:
    if not folds.choose:
        return ""
    return (
        f"; each takes the best of {len(folds.choose)} candidates in {folds.inner_folds} folds of its training part"
    )


def _together(runs: list[Fold], summaries: list[dict]) -> dict:
    """Return the results of each run and their means and deviations over the runs and over the seeds."""
    rows = [
        {"seed": run.seed, "fold": run.name, "metrics": summary["best"], "epoch": summary["best_epoch"],
         "seconds_per_epoch": summary["seconds_per_epoch"]}
        | {name: summary[name] for name in ("chosen", "scores") if name in summary}
        for run, summary in zip(runs, summaries)
    ]  # fmt: skip
    seeds = [run.seed for run in runs]
    result = {"runs": rows, **_over(seeds, [row["metrics"] for row in rows])}
    targets = rows[0]["metrics"].get("per_target", ())
    if targets:
        result["per_target"] = {
            name: _over(seeds, [row["metrics"]["per_target"][name] for row in rows]) for name in targets
        }
    return result


def _over(seeds: list[int], found: list[dict]) -> dict[str, dict]:
    """Return the mean and deviation of each measure over the runs, ``folds``, and over the means of the ``seeds``."""
    # Runs of another version may have further measures.
    common = set.intersection(*map(set, found))
    names = [name for name, value in found[0].items() if name in common and isinstance(value, float)]
    by_seed: dict[int, list[dict]] = {}
    for seed, metrics in zip(seeds, found):
        by_seed.setdefault(seed, []).append(metrics)

    def over_seeds(name: str) -> list[float | None]:
        return mean_and_deviation([statistics.fmean(each[name] for each in group) for group in by_seed.values()])

    return {
        "folds": {name: mean_and_deviation([metrics[name] for metrics in found]) for name in names},
        "seeds": {name: over_seeds(name) for name in names},
    }


def mean_and_deviation(values: list[float]) -> list[float | None]:
    """Return the mean and the sample standard deviation, which is None for a single value."""
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def _truth_and_predicted(task: Task, predictions: list[Prediction]) -> tuple[list, list]:
    """Return the labels and the predicted labels as class indices, or as rows of values without classes."""
    if task.classes:
        index = task.classes.index
        return [index(row.truth) for row in predictions], [index(row.predicted) for row in predictions]
    truth, predicted = as_rows(predictions)
    if not all(map(math.isfinite, itertools.chain(*predicted))):
        raise FloatingPointError("predictions hold a value that is not finite; a smaller learning_rate may help")
    return truth, predicted

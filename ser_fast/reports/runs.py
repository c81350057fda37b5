"""Whole runs as the command line starts them: training, cross-validation and demo, with figures and a report."""

import contextlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ser_fast.data.corpora import Corpus, load_corpus
from ser_fast.data.dataset import Dataset, load_dataset, split_corpus
from ser_fast.data.failures import listed, summarise
from ser_fast.data.findings import corpus_lines
from ser_fast.data.splits import Split
from ser_fast.data.utterance import plural
from ser_fast.reports import browser, corpus_tables, curves, figures, html
from ser_fast.reports.terminal import TrainingDisplay, print_table, say
from ser_fast.training import cross_validation, distributed
from ser_fast.training.checkpoint import blank
from ser_fast.training.config import TrainConfig, resumed, run_folder, run_options
from ser_fast.training.corpus import corpus_of
from ser_fast.training.folds import Folds
from ser_fast.training.predictions import Prediction, as_rows, read_csv
from ser_fast.training.results import Predicted, Results
from ser_fast.training.run_folder import RunFolder
from ser_fast.training.task import task_of
from ser_fast.training.tensorboard import add_picture, require_loggers
from ser_fast.training.trainer import Trainer
from ser_fast.training.upstream import completed, open_source, read_inputs

CAPTIONS = {
    "loss": "Loss of each epoch, and the metric of the validation part or, without one, of the training part.",
    "confusion": "Test utterances by true class (rows) and predicted class.",
    "scatter": "Predicted against true values of test utterances, in the corpus's unit; on the line they are equal.",
    "attention": "Power of a test utterance, the upper 80 dB, and the attention, if any, to each frame.",
}


def train(config: TrainConfig, options: dict) -> dict:
    """Train and test a model, and write figures and a report into the run folder.

    In several processes (``torchrun``) rank 0 locks the folder, draws and reports.

    Args:
        config: options of the run.
        options: keyword arguments of the model.

    Returns:
        The content of ``summary.json``, which a notebook shows as tables.

    Raises:
        ValueError: the options do not fit the corpus or the folder; raised before any audio is read.
        AudioError: an utterance cannot be read and ``config.skip_bad`` is false.
    """
    config = distributed.from_rank_0(lambda: resumed(config))
    with contextlib.ExitStack() as stack:
        with distributed.agreed():
            source = open_source(config.features, config.features_layer, distributed.device(config.device))
            options = completed(config.model, options, source)
            folder = run_folder(config.out, run_options(config, options))
            # Options that do not fit fail before any audio is read and before the folder is made.
            require_loggers(config)
            model = blank(config.model, 2, options)
            corpus = corpus_of(config)
            task_of(corpus.classes, config.loss, config.label_smoothing)
            split = split_corpus(corpus, **config.held_out)
            if source is not None:
                source.check(corpus.utterances)
            if distributed.rank() == 0:
                stack.enter_context(folder)
        described = corpus_lines(corpus)  # of all utterances, also those that cannot be read
        for line in described:
            say(line)
        with distributed.agreed(), listed(config.out) if distributed.rank() == 0 else contextlib.nullcontext():
            storage = config.storage(distributed.local_world())
            rate = model.spectrogram.sample_rate
            corpus, dataset = read_inputs(source, model.spectrogram, corpus, config.skip_bad, say, storage)
            if dataset.skipped:  # the parts are drawn from the utterances that could be read
                split = dataset.split(**config.held_out)
        if dataset.skipped:
            say(f"skipped {plural(len(dataset.skipped), 'unreadable utterance')}:")
            for line in summarise(dataset.skipped):
                say(f"  {line}")
        trainer, summary = _fit(config, options, dataset, split, folder, config.model)
        distributed.finish()
        if distributed.rank() > 0:
            return summary
        epochs = {f"{name} epoch": summary[name] for name in ("best", "last") if name in summary}
        tested = {"metrics": summary["best"], **summary} if epochs else {}
        tables = [html.scores(epochs), html.intervals(tested)] if tested else []
        page = folder.path / "report.html"
        head = [
            html.note(_described(summary)),
            *map(html.note, described),
            *(html.table(*each) for each in tables),
            *([html.per_class(summary["best"])] if tested and dataset.classes else []),
        ]
        parts = [
            *head,
            *learning({config.model: trainer.progress.rows}),
            *_pictures(trainer, summary, config.model),
            *(utterances(_tested(trainer, summary, corpus), page) if tested else []),
            *([html.heading("Test speakers"), *html.speakers(tested)] if tested else []),
            *corpus_tables.section(dataset, rate, dataset.skipped),
            html.heading("Options"),
            html.preformatted(folder.config.read_text()),
            html.machine(),
        ]
        html.write(page, f"{config.model} on {dataset.name}", parts)
        drawn = folder.path / "figures" / "confusion.png"
        if "tensorboard" in config.log and drawn.is_file():
            add_picture(folder.path, "test/confusion", drawn, trainer.progress.epoch)
    for title, each in zip((f"Test: {summary['protocol']}", ""), tables):
        print_table(title, *each)
    if not tested:
        say(summary["protocol"])
    say(f"report: {page}")
    return html.Shown(summary, head, page)


def cross_validate(config: TrainConfig, options: dict, folds: Folds) -> dict:
    """Run :func:`ser_fast.training.cross_validation.cross_validate`; write figures and a report into ``config.out``.

    Args and returns are those of that function.
    """
    out = Path(config.out)
    with listed(out):
        results = cross_validation.results(config, options, folds, say)
    result, page = results.summary, out / "report.html"
    described = (
        f"{result['data']}: {result['protocol']}; {len(result['runs'])} runs; {len(result['skipped'])} skipped; "
        f"{result['parameters']:,} parameters"
    )
    header, rows = fold_table(result)
    tested = {"metrics": result["pooled"], **result}
    tables = [(header, rows), *([target_table(result)] if "per_target" in result else []), html.intervals(tested)]
    parts = [html.note(described), *map(html.note, result["corpus_summary"])]
    parts += [html.table(*each) for each in tables]
    head = list(parts)
    if folds.choose:
        parts += [html.heading("What each fold chose"), html.table(*choice_table(result, folds.choose))]
    if result["classes"]:
        pooled, path = result["pooled"], out / "figures" / "confusion.png"
        title = (
            f"{config.model} on {result['data']}, UA {pooled['recall']:.1%} of all predictions\n{result['protocol']}"
        )
        parts += [
            html.per_class(pooled),
            *draw(path, CAPTIONS["confusion"],
                   lambda: figures.confusion(pooled["confusion"], result["classes"], path, title)),
        ]  # fmt: skip
    else:
        title = f"{config.model} on {result['data']}, all predictions\n{result['protocol']}"
        parts += scatter(sorted(out.glob("seed*/fold*/predictions.csv")), result["targets"], out, title)
    parts += [
        *learning({tested.name: read_metrics(tested.checkpoint.parent) for tested in results.tested}),
        *utterances(results, page),
        html.heading("Speakers"),
        *html.speakers(tested),
        *corpus_tables.section(results.dataset, results.sample_rate, result["skipped"]),
    ]
    parts += [html.heading("Options"), html.preformatted((out / "config.json").read_text()), html.machine()]
    html.write(page, f"{config.model} on {result['data']}: {result['protocol']}", parts)
    print_table(described, header, rows)
    for each in tables[1:]:
        print_table("", *each)
    say(f"report: {page}")
    return html.Shown(result, head, page)


def target_table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the measures of each target, over the folds and of all predictions together.

    Args:
        result: the content of a cross-validation's ``summary.json``, of several targets.
    """
    shown = html.measures(result["pooled"])
    rows = []
    for name, found in result["per_target"].items():
        rows.append([f"{name}: mean of the folds ± std", *(_mean(key, *found["folds"][key]) for key in shown)])
        pooled = result["pooled"]["per_target"][name]
        rows.append([f"{name}: all predictions together", *(html.number(key, pooled[key]) for key in shown)])
    return ["", *shown.values()], rows


def scatter(tables: list[Path], targets: list[str], out: Path, title: str) -> list[str]:
    """Draw true and predicted values of tables of predictions into the folder ``out``; return HTML parts."""
    path = out / "figures" / "scatter.png"

    def drawing() -> Path:
        predictions = [row for table in tables for row in read_csv(table, [], targets)]
        return figures.scatter(*map(np.asarray, as_rows(predictions)), targets, path, title)

    return draw(path, CAPTIONS["scatter"], drawing)


def _mean(key: str, mean: float, std: float | None) -> str:
    return html.number(key, mean) + ("" if std is None else f" ± {html.number(key, std)}")


def fold_table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: each run, mean and standard deviation, and the measures of all predictions together.

    Args:
        result: the content of a cross-validation's ``summary.json``.
    """
    # Finished folds of older versions lack some measures.
    shown = {key: heading for key, heading in html.measures(result["pooled"]).items() if key in result["folds"]}
    rows = [
        [f"seed {run['seed']}, without {run['fold']}", *(html.number(key, run["metrics"][key]) for key in shown)]
        for run in result["runs"]
    ]
    for name, over in (("mean of the folds", "folds"), ("mean of the seeds", "seeds")):
        spread = [_mean(key, *result[over][key]) for key in shown]
        if over == "folds" or result["seeds"][next(iter(shown))][1] is not None:
            rows.append([f"{name} ± std", *spread])
    pooled = [html.number(key, result["pooled"][key]) for key in shown]
    of = "mean of the targets" if "per_target" in result else ""
    return [of, *shown.values()], [*rows, ["all predictions together", *pooled]]


def choice_table(result: dict, candidates: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the mean score of each candidate in the inner folds, and the runs that took it.

    Args:
        result: the content of a cross-validation's ``summary.json``.
        candidates: ``folds.choose``.
    """
    rows = []
    for number, candidate in enumerate(candidates):
        words = "; ".join(f"{name}: {value}" for name, value in candidate.items()) or "the options as they are"
        scores = [run["scores"][number] for run in result["runs"]]
        taken = [f"seed {run['seed']}, without {run['fold']}" for run in result["runs"] if run["chosen"] == candidate]
        rows.append([words, f"{statistics.fmean(scores):.3f}", "; ".join(taken) or "none"])
    return ["candidate", "mean score in the inner folds", "taken by"], rows


class Compared(NamedTuple):
    """A network of the demo: its name in tables, the model, its options."""

    name: str
    model: str
    options: dict


# By the name of the run's folder; the last is what the others' times are compared with.
DEMO = {
    "gru": Compared("CGRU", "cgru", {}),
    "lstm": Compared("LSTM, our other kernels", "cgru", {"cell": "lstm"}),
    "plain": Compared("LSTM, plain torch", "plain_cgru", {}),
}


def demo(out: Path, epochs: int, seed: int) -> dict[str, dict]:
    """Train CGRU and the same network with nn.LSTM, on our other kernels and in plain torch, on synthetic voices.

    The last two speakers, a male and a female one, are held out.

    Args:
        out: folder of the runs and the report.
        epochs: epochs of each run.
        seed: seed of all runs.

    Returns:
        The summaries of the runs in :data:`DEMO`.
    """
    corpus = load_corpus("synthetic")
    dataset = load_dataset(corpus, 16000)
    held_out = ",".join(sorted(set(dataset.speakers))[-2:])
    configs = {
        key: resumed(
            TrainConfig(
                out=out / key, model=network.model, test_speakers=held_out, epochs=epochs, batch_size=16, seed=seed
            )
        )
        for key, network in DEMO.items()
    }
    split = dataset.split(**configs["gru"].held_out)
    summaries, histories, pictures = {}, {}, []
    page = out / "report.html"
    with run_folder(out, {"command": "demo", "epochs": epochs, "seed": seed}) as whole:
        whole.begin()
        for key, config in configs.items():
            network = DEMO[key]
            with run_folder(config.out, run_options(config, network.options)) as folder:
                trainer, summaries[key] = _fit(config, network.options, dataset, split, folder, network.name)
                histories[network.name] = trainer.progress.rows
                if key == "gru":
                    pictures = _pictures(trainer, summaries[key], network.name, skip="loss")
                    pictures += utterances(_tested(trainer, summaries[key], corpus), page)
        described = _described(summaries["gru"])
        header, rows = _side_by_side(summaries)
        spans = _spans(summaries)
        sentence = _compared(summaries)
        loss = out / "figures" / "loss.png"
        parts = [
            html.note(described),
            html.table(header, rows),
            html.table(*spans),
            html.note(sentence),
            html.per_class(summaries["gru"]["best"]),
            *draw(loss, CAPTIONS["loss"], lambda: figures.loss_curves(histories, loss)),
            *learning(histories),
            *pictures,
            html.machine(),
        ]
        html.write(page, "CGRU on synthetic voices, and the same network with an LSTM", parts)
    print_table(described, header, rows)
    print_table("", *spans)
    say(sentence)
    say(f"report: {page}")
    return summaries


def _side_by_side(summaries: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: metrics, seconds per epoch and their share of the last run's."""
    header, rows = html.scores({DEMO[key].name: summary["best"] for key, summary in summaries.items()})
    seconds = [summary["seconds_per_epoch"] for summary in summaries.values()]
    more = [[f"{each:.2f}", f"{each / seconds[-1]:.0%}"] for each in seconds]
    ends = ["s per epoch", f"of {list(DEMO.values())[-1].name}"]
    return ["", *header[1:], *ends], [row + end for row, end in zip(rows, more)]


def _spans(summaries: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the intervals over the test speakers of each network's UA."""
    header, rows = [], []
    for key, summary in summaries.items():
        ua = {"recall": summary["intervals"]["recall"]}
        header, found = html.intervals({"metrics": summary["best"], **summary, "intervals": ua})
        rows += [[f"{DEMO[key].name}, {name}", *rest] for name, *rest in found]
    return header, rows


def _compared(summaries: dict[str, dict]) -> str:
    ours, twin, plain = (summaries[key]["seconds_per_epoch"] for key in DEMO)
    return (
        f"A training epoch of our CGRU takes {ours / plain:.0%} of the time of the same network in plain torch with "
        f"nn.LSTM, and {ours / twin:.0%} of the time with nn.LSTM on our other kernels; all three in this run."
    )


def _fit(
    config: TrainConfig, options: dict, dataset: Dataset, split: Split, folder: RunFolder, name: str
) -> tuple[Trainer, dict]:
    """Train and test with a display; return the trainer and the summary."""
    with TrainingDisplay(name, config.epochs) as display:
        trainer = Trainer(config, options, dataset, split, folder, display)
        return trainer, trainer.run()


def _pictures(trainer: Trainer, summary: dict, name: str, skip: str = "") -> list[str]:
    """Draw loss curves and, with a test part, its confusion matrix or values and the attention of one utterance.

    Args:
        trainer: a finished run.
        summary: its summary.
        name: name of the run.
        skip: a key of ``CAPTIONS`` that is not drawn.

    Returns:
        HTML parts of the report.
    """
    dataset, captions = trainer.dataset, dict(CAPTIONS)
    drawings: dict[str, Callable[[Path], Path]] = {
        "loss": lambda path: figures.loss_curves({name: trainer.progress.rows}, path),
    }
    if trainer.split.test:
        best, middle = summary["best"], len(trainer.split.test) // 2
        index, shown = trainer.split.test[middle], trainer.predictions[middle]
        place, labels = figures.shortened(shown.name, 80), _outcome(shown, dataset.classes)
        captions["attention"] += f" {place}; {labels}."
        drawings["attention"] = lambda path: figures.attention(
            trainer.model, dataset.waves[index], path, f"{place}\n{labels}", dataset.inputs[index]
        )
    if trainer.split.test and dataset.classes:
        title = f"{name} on {dataset.name}, UA {best['recall']:.1%}\n{summary['protocol']}"
        drawings["confusion"] = lambda path: figures.confusion(best["confusion"], dataset.classes, path, title)
    elif trainer.split.test:
        title = f"{name} on {dataset.name}\n{summary['protocol']}"
        rows = [np.asarray(values) for values in as_rows(trainer.predictions)]
        drawings["scatter"] = lambda path: figures.scatter(*rows, dataset.targets, path, title)
    parts = []
    for key, drawing in drawings.items():
        if key != skip:
            path = trainer.folder.path / "figures" / f"{key}.png"
            parts += draw(path, captions[key], lambda drawing=drawing, path=path: drawing(path))
    return parts


def _outcome(shown: Prediction, classes: list[str]) -> str:
    """Return a phrase with the true and the predicted class or values."""
    truth, predicted = shown.truth, shown.predicted
    if not classes:
        truth, predicted = (", ".join(f"{value:.4g}" for value in rows[0]) for rows in as_rows([shown]))
    return f"true: {truth}, predicted: {predicted}"


def _tested(trainer: Trainer, summary: dict, corpus: Corpus) -> Results:
    tested = Predicted("", trainer.best, trainer.split.test, trainer.predictions)
    return Results(summary, corpus, trainer.dataset, trainer.model.spectrogram.sample_rate, [tested])


def read_metrics(folder: Path) -> list[dict]:
    """Return the rows of the ``metrics.jsonl`` of a run; none if they cannot be read."""
    try:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def learning(histories: dict[str, list[dict]]) -> list[str]:
    """Return :func:`ser_fast.reports.curves.section`, or a note if it fails."""
    return attempt("learning curves", lambda: curves.section(histories))


def utterances(results: Results, page: Path) -> list[str]:
    """Return :func:`ser_fast.reports.browser.section`, or a note if it fails."""
    return attempt("the list of utterances", lambda: browser.section(results, page))


def draw(path: Path, caption: str, drawing: Callable[[], Path]) -> list[str]:
    """Return the picture as HTML, or a note if it cannot be drawn."""
    return attempt(path.name, lambda: [html.picture(drawing(), caption)])


def attempt(name: str, parts: Callable[[], list[str]]) -> list[str]:
    """Return HTML parts, or a note if they fail: the report of a finished run is still written."""
    try:
        return parts()
    except Exception as error:
        said = f"{name} could not be drawn: {error}"
        say(said)
        return [html.note(said)]


def _described(summary: dict) -> str:
    parts = ", ".join(f"{count} {part}" for part, count in summary["utterances"].items())
    return (
        f"{summary['data']}: {summary['protocol']}; utterances: {parts}; {len(summary['skipped'])} skipped; "
        f"{summary['parameters']:,} parameters; best epoch {summary['best_epoch']}"
    )

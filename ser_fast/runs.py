"""Whole runs as the command line starts them: train with figures and a report, and the demonstration."""

from pathlib import Path

from ser_fast import figures, report
from ser_fast.display import TrainingDisplay, console, print_table
from ser_fast.models import MODELS
from ser_fast.training import TrainConfig, Trainer, check_folder, load_dataset

SCORES = ("accuracy", "recall", "precision", "f1")


def train(config: TrainConfig, options: dict) -> dict:
    """Train, test, draw and report; returns the summary that the run folder keeps."""
    model = MODELS[config.model](2, **options)  # options that do not fit fail before any audio is read
    check_folder(config, options)
    dataset = load_dataset(config.data, model.spectrogram.sample_rate, config.skip_bad)
    if dataset.skipped:
        console.print(f"skipped {len(dataset.skipped)} unreadable utterances:")
        for error in dataset.skipped:
            console.print(f"  {error}", markup=False)
    trainer, summary = _fit(config, options, dataset, config.model)
    drawn = _figures(trainer, summary, config.model)
    parts = [
        report.note(_described(summary)),
        report.table(
            report.SCORE_HEADER, report.scores({"best epoch": summary["best"], "last epoch": summary["last"]})
        ),
        report.per_class(summary["best"]),
        *(report.picture(path, path.stem) for path in drawn),
        report.heading("Options"),
        report.preformatted((trainer.folder / "config.json").read_text()),
    ]
    page = report.write(trainer.folder / "report.html", f"{config.model} on {dataset.name}", parts)
    _print_scores(f"Test: {summary['protocol']}", {"best epoch": summary["best"], "last epoch": summary["last"]})
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return summary


def demo(out: Path, epochs: int, seed: int) -> dict[str, dict]:
    """Train CGRU on synthetic voices, then the same model with nn.LSTM, and lay the two side by side.

    The last two speakers, one of either sex, are held out.
    """
    options = {"GRU": {}, "LSTM": {"cell": "lstm"}}
    summaries, curves, parts = {}, {}, []
    dataset = load_dataset("synthetic", 16000)
    held_out = ",".join(sorted(set(dataset.speakers))[-2:])
    for name, extra in options.items():
        config = TrainConfig(
            out=out / name.lower(), model="cgru", test_speakers=held_out, epochs=epochs, batch_size=16, seed=seed
        )
        trainer, summaries[name] = _fit(config, extra, dataset, f"CGRU with {name}")
        curves[name] = trainer.progress.rows
        if name == "GRU":
            parts = [report.picture(path, path.stem) for path in _figures(trainer, summaries[name], "CGRU")]
    seconds = {name: summary["seconds_per_epoch"] for name, summary in summaries.items()}
    ratio = seconds["GRU"] / seconds["LSTM"]
    figures.loss_curves(curves, out / "figures" / "loss.png")
    rows = [
        [
            name,
            *(100 * summary["best"][key] for key in SCORES),
            f"{seconds[name]:.2f}",
            f"{seconds[name] / seconds['LSTM']:.2f}",
        ]
        for name, summary in summaries.items()
    ]
    header = ["CGRU with", "accuracy %", "recall (UA) %", "precision %", "F1 %", "s per epoch", "time / LSTM's"]
    described = _described(summaries["GRU"])
    page = report.write(
        out / "report.html",
        "CGRU on synthetic voices: GRU and LSTM",
        [
            report.note(described),
            report.table(header, rows),
            report.per_class(summaries["GRU"]["best"]),
            report.picture(out / "figures" / "loss.png", "loss curves"),
            *parts,
        ],
    )
    print_table(
        described, header, [[f"{value:.1f}" if isinstance(value, float) else value for value in row] for row in rows]
    )
    console.print(f"a training epoch with our GRU takes {ratio:.0%} of the time with nn.LSTM, both in this run")
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return summaries


def _fit(config: TrainConfig, options: dict, dataset, name: str) -> tuple[Trainer, dict]:
    with TrainingDisplay(name, config.epochs) as display:
        trainer = Trainer(config, options, dataset, display)
        if trainer.progress.epoch:
            console.print(
                f"{name}: going on after epoch {trainer.progress.epoch} of {trainer.folder}", soft_wrap=True
            )
        return trainer, trainer.run()


def _figures(trainer: Trainer, summary: dict, name: str) -> list[Path]:
    """Loss curves, the test's confusion matrix and one test utterance's attention, for the best epoch."""
    folder, dataset = trainer.folder / "figures", trainer.dataset
    index = trainer.split.test[len(trainer.split.test) // 2]
    label = dataset.classes[dataset.labels[index]]
    return [
        figures.loss_curves({name: trainer.progress.rows}, folder / "loss.png"),
        figures.confusion(
            summary["best"]["confusion"], dataset.classes, folder / "confusion.png",
            f"{name} on {dataset.name}, UA {summary['best']['recall']:.1%}",
        ),
        figures.attention(
            trainer.model, dataset.waves[index], folder / "attention.png", f"{dataset.names[index]}: {label}"
        ),
    ]  # fmt: skip


def _described(summary: dict) -> str:
    parts = ", ".join(f"{count} {part}" for part, count in summary["utterances"].items())
    return (
        f"{summary['data']}: {summary['protocol']}; utterances: {parts}; {len(summary['skipped'])} skipped; "
        f"{summary['parameters']:,} parameters; best epoch {summary['best_epoch']}"
    )


def _print_scores(title: str, named: dict[str, dict]) -> None:
    rows = [[name, *(f"{100 * metrics[key]:.1f}" for key in SCORES)] for name, metrics in named.items()]
    print_table(title, report.SCORE_HEADER, rows)

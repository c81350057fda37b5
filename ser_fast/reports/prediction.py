"""Predictions on standard output, or the progress and the summary of a run that writes a file."""

import json
import time

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ser_fast.data.files import printable
from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.local import Engine, Outcome, Report, answers
from ser_fast.prediction.run import run
from ser_fast.prediction.shipped import notice
from ser_fast.prediction.stream import Found
from ser_fast.prediction.summary import Summary
from ser_fast.reports.terminal import ON_TERMINAL, console, print_table, say
from ser_fast.training import distributed

_SECONDS = 10.0  # until the first line of progress; later ones come after a tenth of the time that has passed


class PredictionDisplay:
    """Shows the progress of a run: on a terminal files/s and times real time, elsewhere a line now and then.

    A context manager, to be called with files and seconds of audio.
    """

    def __init__(self):
        self._begin = self._shown = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not ON_TERMINAL,
        )  # fmt: skip
        self._task = self._bar.add_task("reading", total=None)

    def __enter__(self) -> "PredictionDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def __call__(self, files: int, seconds: float) -> None:
        now = time.monotonic()
        passed = now - self._begin
        if now - self._shown < (0.2 if ON_TERMINAL else max(_SECONDS, passed / 10)):
            return
        self._shown = now
        line = f"{files} files  {files / passed:.0f} files/s  {seconds / passed:.0f}x real time"
        self._bar.update(self._task, description=line)
        if not ON_TERMINAL and distributed.rank() == 0:
            say(line)


def predict(config: PredictConfig, report: Report) -> Summary:
    """Predict, print, and return the counts of all results.

    Args:
        config: options of the run.
        report: called with sentences that are no results.
    """
    if sentence := notice(config.checkpoint):
        report(sentence)
    if config.out is None:
        summary = Summary()
        _print(config, report, summary)
        return summary
    with PredictionDisplay() as display:
        outcome = run(config, report, display)
    if distributed.rank() == 0:
        for line in _lines(config, outcome):
            say(line)
    return outcome.whole


def _print(config: PredictConfig, report: Report, summary: Summary) -> None:
    engine = Engine(config)
    classes, rows = engine.predictor.classes, []
    for found in answers(engine, report, summary):
        if config.json:
            print(json.dumps(_answer(engine, found)), flush=True)
            continue
        row = engine.columns.row(found)
        error = row.pop("error")
        row.pop("seconds")
        row["flag"] = f"error: {error}" if error else row["flag"]
        rows.append([_cell(value) for value in row.values()])
    if rows:
        header = [name for name in engine.columns.names if name not in ("seconds", "error")]
        print_table("", [name.removeprefix("p_") if classes else name for name in header], rows)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _answer(engine: Engine, found: Found) -> dict:
    """Return a result as ``--json`` prints it."""
    item, clip, output, error = found
    answer: dict = {"file": item.file}
    if engine.columns.spans:
        place = item if clip is None else clip
        answer |= {"start": place.start, "end": place.end}
    if error:
        return answer | {"error": f"{printable(item.file)}: {error}"}
    values = None if output is None else dict(zip(engine.predictor.names, output.values))
    if engine.columns.classes:
        answer |= {"label": engine.columns.classes[output.best] if output else None, "probabilities": values}
    else:
        answer |= values or dict.fromkeys(engine.predictor.names)
    answer["flag"] = clip.flag
    if engine.columns.embeddings:
        answer["embedding"] = None if output is None else output.embedding.tolist()
    return answer


def _lines(config: PredictConfig, outcome: Outcome) -> list[str]:
    whole, now = outcome
    before = whole.files - now.files
    lines = [f"{config.out}: {whole.rows} rows of {whole.files} files, {whole.audio / 3600:.2f} hours of audio"]
    if whole.unpredicted:
        lines.append(f"not predicted, see the column flag: {whole.unpredicted} rows")
    if before:
        lines.append(f"files of interrupted runs: {before}")
    if now.files:
        rate = f"{now.files / now.wall:.0f} files/s, {now.audio / now.wall:.0f}x real time"
        lines.append(f"{now.files} files in {now.wall:.1f} s: {rate}")
        spent = now.reading + now.model + now.writing
        shares = {"reading": now.reading, "model": now.model, "output": now.writing}
        shown = ", ".join(f"{name} {seconds:.1f} s ({seconds / spent:.0%})" for name, seconds in shares.items())
        lines.append(f"time, summed over processes: {shown}")
    return lines

"""Output of the command line: lines, tables and the progress of a training run."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ser_fast.data.files import printable
from ser_fast.data.pace import Pace
from ser_fast.training.reporter import Reporter


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Print no more once the reader of a pipe has gone; rich would end the process."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


ON_TERMINAL = sys.stdout is not None and sys.stdout.isatty()  # None: standard output is closed
# In a file or a pipe no line is folded, so that paths stay whole. A notebook gets the same lines: rich would show
# each as an output of its own there.
console = _Console(width=None if ON_TERMINAL else 10_000, force_jupyter=False)


def say(line: str) -> None:
    """Print a line literally, without markup, colours or folding."""
    console.print(Text(printable(line)), soft_wrap=True)


@contextlib.contextmanager
def reading_bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while the context lasts; yield a function that takes the number of utterances that are done."""
    bar = Progress(
        TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(30), TimeRemainingColumn(compact=True),
        TextColumn("left"), console=console, transient=True,
    )  # fmt: skip
    with bar:
        shown = bar.add_task(task, total=total)
        yield lambda done: bar.update(shown, completed=done)


if ON_TERMINAL:
    say.progress = reading_bar  # what reads a corpus takes it, see ser_fast.data.pace.progress


class TrainingDisplay(Reporter):
    """Shows a training run: a bar with loss, accuracy, utterances/s and the time left, and a line for every epoch.

    A context manager; the bar is shown only on a terminal, while the context lasts. Elsewhere a long epoch prints
    lines.

    Args:
        name: name of the run, at the start of every line.
        epochs: epochs of the run.
    """

    def __init__(self, name: str, epochs: int):
        self.name, self.epochs, self.pace = name, epochs, Pace()
        bar = [BarColumn(30)] if console.width >= 120 else []
        self.bar = Progress(
            TextColumn("{task.description}"), *bar, TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True), TextColumn("left"),
            console=console, transient=True, disable=not ON_TERMINAL,
        )  # fmt: skip
        self.task = self.bar.add_task(name, numbers="")

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def on_notice(self, text: str) -> None:
        say(f"{self.name}: {text}")

    def on_batch(
        self, epoch: int, share: float, loss: float, accuracy: float | None, utterances_per_second: float
    ) -> None:
        right = "" if accuracy is None else f"accuracy {accuracy:.1%}  "
        numbers = f"loss {loss:.3f}  {right}{utterances_per_second:.0f} utterances/s"
        place = f"{self.name} epoch {epoch}/{self.epochs}"
        self.bar.update(
            self.task, description=place, numbers=numbers, total=self.epochs, completed=epoch - 1 + share
        )  # fmt: skip
        if not ON_TERMINAL and self.pace.due(share):
            say(f"{place}, {share:.0%} done  {numbers}")

    def on_epoch(self, row: dict) -> None:
        self.pace = Pace()
        left = (self.epochs - row["epoch"]) * row["seconds"]
        right = f"accuracy {row['accuracy']:6.1%}  " if "accuracy" in row else ""
        valid = ""
        if "valid_recall" in row:
            valid = f"validation loss {row['valid_loss']:.3f}  UA {row['valid_recall']:6.1%}  "
        elif "valid_mae" in row:
            ccc = f"CCC {row['valid_ccc']:.3f}  " if "valid_ccc" in row else ""
            # The mean error of several targets has no unit.
            mae = "" if "valid_standardised_mae" in row else f"MAE {row['valid_mae']:.4g}  "
            valid = f"validation {mae}{ccc}"
        say(
            f"{self.name} epoch {row['epoch']:>3}/{self.epochs}  loss {row['loss']:.3f}  "
            f"{right}{valid}"
            f"{row['utterances'] / row['seconds']:.0f} utterances/s  {left:.0f} s left"
        )


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table; cells are shown literally, the first column on the left, the others on the right.

    Args:
        title: above the table; may be empty.
        header: names of the columns.
        rows: cells.
    """
    table = Table(
        title=Text(printable(title), "italic") if title else None, title_justify="left", box=None, pad_edge=False
    )
    for index, name in enumerate(header):
        table.add_column(Text(printable(name), "bold"), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table, highlight=False)

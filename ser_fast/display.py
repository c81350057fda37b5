"""What the command line shows: progress while a model trains, and tables."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


class TrainingDisplay:
    """Shows a run's rows: a bar with loss, accuracy, utterances/s and the time left, and a line for every epoch."""

    def __init__(self, name: str, epochs: int):
        self.name, self.epochs = name, epochs
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True), TextColumn("left"),
            console=console, transient=True, disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self.task = self.bar.add_task(name, figures="")

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, row: dict) -> None:
        if "seconds" in row:
            self._epoch(row)
            return
        figures = (
            f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}  {row['utterances_per_second']:.0f} utterances/s"
        )
        self.bar.update(
            self.task, description=f"{self.name} epoch {row['epoch']}/{self.epochs}", figures=figures,
            total=self.epochs * row["total"], completed=(row["epoch"] - 1) * row["total"] + row["done"],
        )  # fmt: skip

    def _epoch(self, row: dict) -> None:
        left = (self.epochs - row["epoch"]) * row["seconds"]
        console.print(
            f"{self.name} epoch {row['epoch']:>3}/{self.epochs}  loss {row['loss']:.3f}  "
            f"accuracy {row['accuracy']:6.1%}  validation loss {row['valid_loss']:.3f}  "
            f"UA {row['valid_recall']:6.1%}  "
            f"{row['utterances'] / row['seconds']:.0f} utterances/s  {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False)

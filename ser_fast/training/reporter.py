"""The interface through which a training run reports its progress."""

from collections.abc import Sequence


class Reporter:
    """Receives the progress of a training run; every method does nothing unless a subclass overrides it."""

    def on_resume(self, rows: list[dict]) -> None:
        """Report that an interrupted run goes on, with the rows of ``metrics.jsonl`` of its finished epochs."""

    def on_batch(
        self, epoch: int, share: float, loss: float, accuracy: float | None, utterances_per_second: float
    ) -> None:
        """Report a finished batch.

        Args:
            epoch: number of the current epoch, from 1.
            share: part of the epoch's batches that are done, in 0..1.
            loss: mean loss of the epoch's utterances so far.
            accuracy: share of them that were predicted correctly, in 0..1; None for values that are no sentiment.
            utterances_per_second: training speed of the epoch so far.
        """

    def on_epoch(self, row: dict) -> None:
        """Report a finished epoch with its row of ``metrics.jsonl``."""

    def on_finish(self, summary: dict) -> None:
        """Report a finished run with the content of its ``summary.json``."""

    def on_notice(self, text: str) -> None:
        """Report a sentence that the user should read, such as that a run is resumed."""

    def close(self) -> None:
        """Close what the reporter has opened; called when a run ends, also by an error."""


class Reporters(Reporter):
    """Passes everything on to several reporters.

    Args:
        reporters: they receive each report in this order.
    """

    def __init__(self, reporters: Sequence[Reporter]):
        self.reporters = list(reporters)

    def on_resume(self, rows: list[dict]) -> None:
        for each in self.reporters:
            each.on_resume(rows)

    def on_batch(self, *progress) -> None:
        for each in self.reporters:
            each.on_batch(*progress)

    def on_epoch(self, row: dict) -> None:
        for each in self.reporters:
            each.on_epoch(row)

    def on_finish(self, summary: dict) -> None:
        for each in self.reporters:
            each.on_finish(summary)

    def on_notice(self, text: str) -> None:
        for each in self.reporters:
            each.on_notice(text)

    def close(self) -> None:
        for each in self.reporters:
            each.close()

"""The interface through which a training run reports its progress."""


class Reporter:
    """Receives the progress of a training run; every method does nothing unless a subclass overrides it."""

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

    def on_notice(self, text: str) -> None:
        """Report a sentence that the user should read, such as that a run is resumed."""

"""Prediction by Ray Data."""

from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.local import Outcome, Progress, Report


def run(config: PredictConfig, report: Report, progress: Progress) -> Outcome:
    """Write the results of a run to ``config.out``; see :func:`ser_fast.prediction.run.run`."""
    raise NotImplementedError

"""One entry to both engines."""

from ser_fast.prediction.config import PredictConfig
from ser_fast.prediction.local import Outcome, Progress, Report
from ser_fast.prediction.local import run as run_locally


def run(
    config: PredictConfig, report: Report = lambda line: None, progress: Progress = lambda files, seconds: None
) -> Outcome:
    """Write the results of a run to ``config.out``; the same call resumes an interrupted run.

    Args:
        config: options with ``out``.
        report: called with sentences about files of folders that are passed over.
        progress: called now and then with the files that this process has done, and their seconds of audio.

    Returns:
        Counts and times.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the output cannot be written; the message says what is safe.
        ValueError: ``out`` exists, a list has no column of names, or the interrupted run had other options or files.
    """
    if config.engine == "ray":
        from ser_fast.prediction import ray_engine

        return ray_engine.run(config, report, progress)
    return run_locally(config, report, progress)

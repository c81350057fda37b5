"""Event files of a run that TensorBoard shows."""

from collections.abc import Iterator
from pathlib import Path

from ser_fast.data.extras import import_extra
from ser_fast.training.config import TrainConfig, learning_rate, run_options
from ser_fast.training.reporter import Reporter

FOLDER = "tensorboard"  # in the run folder


def require_loggers(config: TrainConfig) -> None:
    """Import the packages that ``config.log`` needs.

    Raises:
        ImportError: a package is missing; the message contains the command that installs it.
    """
    if "tensorboard" in config.log:
        import_extra("tensorboard", "log=tensorboard", "tensorboard")


class TensorBoard(Reporter):
    """Writes the measures of each epoch, the options and the test measures of a run as event files.

    A resumed run replaces what an interrupted one wrote after its last whole epoch. If the earlier epochs were not
    logged, it writes them too.

    Args:
        config: options of the run.
        options: keyword arguments of the model.
        path: the run folder; the files lie in its folder ``tensorboard``.

    Raises:
        ImportError: the package tensorboard is missing.
    """

    def __init__(self, config: TrainConfig, options: dict, path: Path):
        require_loggers(config)
        self.config, self.options, self.folder = config, options, Path(path) / FOLDER
        self.before: list[dict] = []
        self.writer = None

    def on_resume(self, rows: list[dict]) -> None:
        self.before = list(rows)

    def on_epoch(self, row: dict) -> None:
        self._open()
        self._write(row)
        self.before.append(row)

    def on_finish(self, summary: dict) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._open()
        step = self.before[-1]["epoch"]
        tested = {f"test/{name}": value for name, value in _floats(summary.get("best", {}))}
        # SummaryWriter.add_hparams would begin a second file, whose name may sort before that of the first.
        for part in hparams(_flat(run_options(self.config, self.options)), tested):
            self.writer.file_writer.add_summary(part)
        for name, value in tested.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self) -> None:
        """Open an event file unless there is an open one.

        TensorBoard drops what earlier files have from the last whole epoch on: the epoch that was interrupted, and
        the test measures, which have the step of the last epoch.
        """
        if self.writer is not None:
            return
        from torch.utils.tensorboard import SummaryWriter

        known = any(self.folder.glob("events.out.tfevents.*"))
        repeated = self.before[-1:] if known else self.before
        self.writer = SummaryWriter(self.folder, purge_step=repeated[0]["epoch"] if repeated else 0)
        for row in repeated:
            self._write(row)

    def _write(self, row: dict) -> None:
        step, config = row["epoch"], self.config
        train = {name: row[name] for name in ("loss", "accuracy") if name in row}
        train["learning_rate"] = learning_rate(config, step / config.epochs)  # at the end of the epoch
        train["utterances_per_second"] = row["utterances"] / row["seconds"]
        valid = {name.removeprefix("valid_"): row[name] for name in row if name.startswith("valid_")}
        for part, measures in (("train", train), ("valid", valid)):
            for name, value in measures.items():
                self.writer.add_scalar(f"{part}/{name}", value, step)
        self.writer.flush()


def add_picture(path: Path, name: str, picture: Path, epoch: int) -> None:
    """Add a PNG file to the event files of a finished run.

    Args:
        path: the run folder.
        name: name of the picture in TensorBoard.
        picture: the PNG file.
        epoch: the last epoch of the run.
    """
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(path / FOLDER) as writer:
        writer.add_image(name, imread(picture)[..., :3], epoch, dataformats="HWC")


def _floats(measures: dict) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in measures.items() if isinstance(value, float))


def _flat(options: dict, above: str = "") -> dict[str, bool | int | float | str]:
    """Return options of all levels by names such as ``cgru.dropout``, in types that TensorBoard shows."""
    found = {}
    for name, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = value if isinstance(value, bool | int | float) else str(value)
    return found

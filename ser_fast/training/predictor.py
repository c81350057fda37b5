"""Class probabilities, or values, of audio files by a saved checkpoint."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from ser_fast.data.audio import find_audio, read_audio
from ser_fast.data.batches import LengthSortedBatches
from ser_fast.data.files import printable
from ser_fast.data.wav import AudioError
from ser_fast.training.checkpoint import CheckpointError, load_checkpoint
from ser_fast.training.memory import in_memory

FILES_AT_ONCE = 256  # files that are in memory, and sorted by length, at a time


class PredictionError(ValueError):
    """The outputs of the model for a file are not finite; the message names the file."""


Result = dict[str, float] | AudioError | PredictionError


class Predictor:
    """Predicts audio files with a saved model.

    Args:
        checkpoint: a checkpoint, or a run folder, whose best one is taken.
        batch_size: files that go through the model together, at least 1.

    Attributes:
        classes: names of the classes; empty for a regression.
        names: names of the numbers of a result: the classes, or "value".

    Raises:
        CheckpointError: the file is no checkpoint, or the folder contains several runs.
        ValueError: ``batch_size`` is below 1.

    Example::

        predictor = Predictor("runs/train")
        for path, result in predictor.files(["speech.wav", "folder"]):
            print(path, result)
    """

    def __init__(self, checkpoint: Path | str, batch_size: int = 32):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        path = Path(checkpoint)
        if path.is_dir():
            path = _best(path)
        loaded = load_checkpoint(path)
        self.model: nn.Module = loaded.build(path)
        self.classes = loaded.classes
        self.names = loaded.classes or ["value"]
        self.batch_size = batch_size

    def files(self, paths: Iterable[Path | str]) -> Iterator[tuple[Path, Result]]:
        """Yield each file with its result.

        Args:
            paths: audio files, or folders whose audio files are taken.

        Yields:
            The path, and a dict of class probabilities or of the ``value``, or the error of a file without a result.
        """
        found: list[Path] = []
        for path in paths:
            try:
                found += find_audio(path)
            except AudioError as error:
                yield Path(path), error
        for start in range(0, len(found), FILES_AT_ONCE):
            yield from self._some(found[start : start + FILES_AT_ONCE])

    @torch.no_grad()
    def _some(self, files: list[Path]) -> Iterator[tuple[Path, Result]]:
        results: dict[Path, Result] = {}
        waves = {}
        for file in files:
            try:
                waves[file] = read_audio(file, self.model.spectrogram.sample_rate)
            except AudioError as error:
                results[file] = error
        named = list(waves)
        batches = LengthSortedBatches(list(waves.values()), [0] * len(waves), self.batch_size)
        for batch in batches.epoch():
            with in_memory(self.batch_size, batch.lengths.tolist(), self.model.spectrogram.sample_rate):
                outputs = self.model(batch.wave, batch.lengths)
            outputs = outputs.softmax(1) if self.classes else outputs
            finite = torch.isfinite(outputs).all(1).tolist()
            for index, row, good in zip(batch.index, outputs.tolist(), finite):
                file = named[index]
                unusable = PredictionError(f"{printable(file)}: the model's outputs are not finite")
                results[file] = dict(zip(self.names, row)) if good else unusable
        for file in files:
            yield file, results[file]


def _best(folder: Path) -> Path:
    """Return the best checkpoint of a run folder."""
    best = folder / "best.safetensors"
    runs = sorted(str(path.parent) for path in folder.glob("**/best.safetensors"))
    if not best.is_file() and runs:
        raise CheckpointError(f"{folder} is no run folder itself; it holds {', '.join(runs)}")
    return best

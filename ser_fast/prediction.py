"""Class probabilities of audio files by a saved checkpoint."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from ser_fast.audio import AudioError, find_audio, read_audio
from ser_fast.batches import LengthSortedBatches
from ser_fast.checkpoint import load_checkpoint

FILES_AT_ONCE = 256  # what is held in memory, and sorted by length, at a time


class Predictor:
    """A checkpoint, or a run folder's best one, ready to classify.

    Raises:
        CheckpointError: the file is not a checkpoint of ours.
    """

    def __init__(self, checkpoint: Path | str, batch_size: int = 32):
        path = Path(checkpoint)
        path = path / "best.safetensors" if path.is_dir() else path
        loaded = load_checkpoint(path)
        self.model: nn.Module = loaded.build(path)
        self.classes = loaded.classes
        self.batch_size = batch_size

    def files(self, paths: Iterable[Path | str]) -> Iterator[tuple[Path, dict[str, float] | AudioError]]:
        """Each file, below the folders too, with its class probabilities or why it could not be read."""
        found = [file for path in paths for file in find_audio(path)]
        for start in range(0, len(found), FILES_AT_ONCE):
            yield from self._some(found[start : start + FILES_AT_ONCE])

    @torch.no_grad()
    def _some(self, files: list[Path]) -> Iterator[tuple[Path, dict[str, float] | AudioError]]:
        results: dict[Path, dict[str, float] | AudioError] = {}
        waves = {}
        for file in files:
            try:
                waves[file] = read_audio(file, self.model.spectrogram.sample_rate)
            except AudioError as error:
                results[file] = error
        named = list(waves)
        batches = LengthSortedBatches(list(waves.values()), [0] * len(waves), self.batch_size)
        for batch in batches.epoch():
            probabilities = self.model(batch.wave, batch.lengths).softmax(1).tolist()
            for index, row in zip(batch.index, probabilities):
                results[named[index]] = dict(zip(self.classes, row))
        for file in files:
            yield file, results[file]

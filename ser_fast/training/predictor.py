"""Class probabilities, or values, of audio files by a saved checkpoint."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ser_fast.data.audio import read_audio, search_audio
from ser_fast.data.batches import pad
from ser_fast.data.files import passed_over, printable
from ser_fast.data.flags import flags
from ser_fast.data.wav import AudioError
from ser_fast.training.checkpoint import CheckpointError, load_checkpoint
from ser_fast.training.memory import is_out_of_memory

# Files that are in memory, and sorted by length, at a time.
FILES_AT_ONCE, SAMPLES_AT_ONCE = 256, 1 << 27


class PredictionError(ValueError):
    """The model has no finite output for a file, or it does not fit in memory; the message names the file."""


class Scores(dict[str, float]):
    """Class probabilities, or the ``value``, of a file.

    Attributes:
        flag: keys of ``ser_fast.data.flags.FLAGS``, such as "silent", separated by spaces: signs that the numbers
            mean little; ``""`` for ordinary audio.
    """

    flag = ""


Result = Scores | AudioError | PredictionError


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
        spectrogram = self.model.spectrogram
        self.sample_rate = spectrogram.sample_rate
        half = _seconds(loaded.progress.get("shortest")) / 2 * self.sample_rate
        self._shortest = max(spectrogram.win_length, half)

    def files(
        self, paths: Iterable[Path | str], report: Callable[[str], None] = lambda line: None
    ) -> Iterator[tuple[Path, Result]]:
        """Yield each file with its result.

        Args:
            paths: audio files, or folders whose audio files are taken.
            report: called with a sentence about the files of a folder that are passed over.

        Yields:
            The path, and a dict of class probabilities or of the ``value``, or the error of a file without a result.
        """
        found: list[Path] = []
        for path in paths:
            try:
                search = search_audio(path)
            except AudioError as error:
                yield Path(path), error
                continue
            found += search.audio
            if sentence := passed_over(search):
                report(f"{printable(path)}: {sentence}")
        read: list[tuple[Path, Tensor | AudioError | PredictionError]] = []
        samples = 0
        for file in found:
            wave = self._read(file)
            read.append((file, wave))
            samples += len(wave) if isinstance(wave, Tensor) else 0
            if len(read) == FILES_AT_ONCE or samples > SAMPLES_AT_ONCE:
                yield from self._results(read)
                read, samples = [], 0
        yield from self._results(read)

    def _read(self, file: Path) -> Tensor | AudioError | PredictionError:
        try:
            return read_audio(file, self.sample_rate)
        except AudioError as error:
            return error
        except MemoryError:
            return PredictionError(f"{printable(file)}: does not fit in memory")

    def _results(self, read: list[tuple[Path, Tensor | Exception]]) -> Iterator[tuple[Path, Result]]:
        """Yield the results of files in their order; batches are of similar length."""
        results: dict[int, Result] = {i: wave for i, (_, wave) in enumerate(read) if isinstance(wave, Exception)}
        order = sorted((i for i in range(len(read)) if i not in results), key=lambda i: len(read[i][1]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, output in zip(batch, self._outputs([read[i][1] for i in batch])):
                results[i] = self._result(*read[i], output)
        for i, (file, _) in enumerate(read):
            yield file, results[i]

    @torch.no_grad()
    def _outputs(self, waves: list[Tensor]) -> list[list[float] | Exception]:
        """Return the outputs for each wave; if they fail together, each is tried alone."""
        try:
            outputs = self.model(*pad(waves))
        except (RuntimeError, MemoryError) as error:
            if len(waves) == 1:
                return [error]
            return [output for wave in waves for output in self._outputs([wave])]
        return (outputs.softmax(1) if self.classes else outputs).tolist()

    def _result(self, file: Path, wave: Tensor, output: list[float] | Exception) -> Result:
        if isinstance(output, Exception):
            reason = (str(output) or "out of memory").splitlines()[0]
            if is_out_of_memory(output):
                reason = f"it does not fit in memory; cut the file into shorter ones ({reason})"
            return PredictionError(
                f"{printable(file)}: {len(wave) / self.sample_rate:.1f} s cannot be predicted: {reason}"
            )
        if not all(map(math.isfinite, output)):
            return PredictionError(f"{printable(file)}: the model's outputs are not finite")
        scores = Scores(zip(self.names, output))
        scores.flag = flags(wave, file, self._shortest)
        return scores


def _seconds(value: object) -> float:
    """Return a number that a checkpoint, which may be of any origin, has or lacks."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else 0.0


def _best(folder: Path) -> Path:
    """Return the best checkpoint of a run folder."""
    best = folder / "best.safetensors"
    runs = sorted(str(path.parent) for path in folder.glob("**/best.safetensors"))
    if not best.is_file() and runs:
        raise CheckpointError(f"{folder} is no run folder itself; it holds {', '.join(runs)}")
    return best

"""Class probabilities, or values, of audio by a saved checkpoint."""

import html
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ser_fast import pretrained
from ser_fast._require import require
from ser_fast.data.batches import pad
from ser_fast.data.files import printable
from ser_fast.data.flags import FLAGS
from ser_fast.data.wav import AudioError
from ser_fast.prediction import stream
from ser_fast.prediction.listing import Item, listing
from ser_fast.prediction.reading import Clip, Reader
from ser_fast.prediction.stream import Found, Output, Read
from ser_fast.training import distributed
from ser_fast.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from ser_fast.training.encoder import Encoder, EncoderError
from ser_fast.training.memory import is_out_of_memory
from ser_fast.training.upstream import Stored, source_of


class PredictionError(ValueError):
    """The model has no finite output for audio, or it does not fit in memory."""


class Scores(dict[str, float]):
    """Class probabilities, or values by their names, of a file; empty if the flag says that nothing is predicted.

    A notebook shows them as a table, probabilities with bars and the largest first, above what the flags mean.

    Attributes:
        flag: keys of ``ser_fast.data.flags.FLAGS``, such as "silent", separated by spaces: signs that the numbers
            mean little; ``""`` for ordinary audio.
        shares: whether the numbers are probabilities.
    """

    flag = ""
    shares = False

    def _repr_html_(self) -> str:
        pairs = sorted(self.items(), key=lambda pair: -pair[1]) if self.shares else self.items()
        rows = "".join(
            f"<tr><th>{html.escape(printable(name))}</th>{self._cells(value)}</tr>" for name, value in pairs
        )
        flags = "".join(f"<p>{name}: {html.escape(FLAGS[name])}</p>" for name in self.flag.split())
        return (f"<table>{rows}</table>" if self else "") + flags

    def _cells(self, value: float) -> str:
        if not self.shares:
            return f"<td>{value:.4g}</td>"
        bar = f'<div style="background: #2563a8; height: 0.7em; width: {100 * value:.1f}px"></div>'
        return f"<td>{value:.1%}</td><td>{bar}</td>"


Result = Scores | AudioError | PredictionError


class Predictor:
    """Predicts audio with a saved model.

    Args:
        checkpoint: a checkpoint, or a run folder, whose best one is taken, or a folder with ``model.safetensors``; a
            checkpoint in memory; ``""`` is the model that comes with ser_fast, :func:`ser_fast.pretrained.path`.
        batch_size: waves that go through the model together, at least 1.
        device: "auto", "cpu" or "cuda".
        threads: batches that go through a model on the CPU at a time, one thread each, which needs no waiting between
            the threads and gives the same numbers for any number of them; None is one batch on torch's threads.
        features: features that the model takes in place of a spectrogram, as in training.

    Attributes:
        classes: names of the classes; empty for a regression.
        names: names of the numbers of a result: the classes, or the targets of a regression, such as "value".
        sample_rate: sampling rate of the waves, in hertz.
        path: the checkpoint's file; None for one in memory.
        needs_speech: whether audio without speech gets no numbers, as the checkpoint says.
        doubt: a sentence if the features may not be those of the training, or ``""``.

    Raises:
        CheckpointError: the file is no checkpoint, or the folder contains several runs.
        ValueError: ``batch_size`` is below 1, or ``features`` do not fit the model.

    Example::

        predictor = Predictor("runs/train")  # or Predictor(), the model that comes with ser_fast
        for path, result in predictor.files(["speech.wav", "folder"]):
            print(path, result)
    """

    def __init__(
        self,
        checkpoint: Path | str | Checkpoint = "",
        batch_size: int = 32,
        device: str = "auto",
        threads: int | None = None,
        features: str = "",
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        held = isinstance(checkpoint, Checkpoint)
        self.path = None if held else find_checkpoint(checkpoint or pretrained.path())
        loaded = checkpoint if held else load_checkpoint(self.path)
        self.device = distributed.device(device)
        place = self.path or "the checkpoint"
        self.model: nn.Module = loaded.build(place).to(self.device)
        self.classes = loaded.classes
        self.names = loaded.names
        self.batch_size = batch_size
        self.sample_rate: int = self.model.spectrogram.sample_rate
        self.source, self.doubt = source_of(place, loaded, self.model, features, self.device)
        self._pool = None
        # An encoder is the larger part of the computation and uses all threads itself.
        if threads is not None and self.device.type == "cpu" and not isinstance(self.source, Encoder):
            self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._pooled = threading.local()
        self.model.classifier.register_forward_pre_hook(lambda _, inputs: setattr(self._pooled, "last", inputs[0]))
        self._shortest = _half_the_shortest(loaded, self.sample_rate)
        self.needs_speech = loaded.progress.get("needs_speech") is True

    def reader(self, segment: float | None = None, hop: float | None = None) -> Reader:
        """Return a reader of audio for this model; see :class:`ser_fast.prediction.reading.Reader`.

        Raises:
            ValueError: ``segment`` or ``hop`` is shorter than a frame of the model, or features are of whole files.
        """
        whole = segment is None or not isinstance(self.source, Stored)
        require(whole, f"segment is {segment}, but the features in a file are of whole files", "omitted")
        frame: int = self.model.spectrogram.win_length
        for name, seconds in (("segment", segment), ("hop", hop)):
            good = seconds is None or seconds * self.sample_rate >= frame
            require(good, f"{name} is {seconds}", f"at least {frame / self.sample_rate} s, a frame of the model")
        return Reader(self.sample_rate, frame, self._shortest, segment, hop, speech=self.needs_speech)

    def files(
        self, paths: Iterable[Path | str], report: Callable[[str], None] = lambda line: None
    ) -> Iterator[tuple[Path, Result]]:
        """Yield each file with its result.

        Args:
            paths: audio files, folders whose audio files are taken, or lists of files.
            report: called with a sentence about the files of a folder that are passed over.

        Yields:
            The path, and a dict of class probabilities or of values in the unit of the corpus that the model was
            trained on, or the error of a file without a result.

        Raises:
            TypeError: ``paths`` is a single name.
        """
        good = not isinstance(paths, (str, bytes, os.PathLike))
        require(good, f"paths is {paths!r:.80}", "a list of files, folders or lists of files", TypeError)
        reader = self.reader()
        blocks = map(self.prepared, stream.read_all(reader, listing(paths, report)))
        for found in stream.results(self.predict, blocks, reader.chunk):
            yield Path(found.item.file), self._result(found)

    def prepared(self, block: Read) -> Read:
        """Return a block with the stored features of its audio, if the model takes such, in place of the samples."""
        if not isinstance(self.source, Stored) or block.error:
            return block
        try:
            return block._replace(clips=[self._stored(block.item, clip) for clip in block.clips])
        except ValueError as error:
            return block._replace(clips=[], error=str(error))

    def _stored(self, item: Item, clip: Clip) -> Clip:
        """Return a clip with features in place of samples; without samples there is nothing to predict."""
        whole = item.start is None and item.end is None
        return clip if clip.samples is None else clip._replace(samples=self.source.of(item.file, whole))

    def predict(
        self, waves: Sequence[Tensor | np.ndarray], embeddings: bool = False
    ) -> list[Output | PredictionError]:
        """Return the outputs for waves, which go through the model in batches of similar length.

        Args:
            waves: float32, or int16 with full scale 2^15, ``[N]`` each, at the model's sample rate; features
                ``[T, D]`` for a model that takes stored ones.
            embeddings: also return the input of the model's last layer.

        Returns:
            For each wave its output, or the reason why it has none.
        """
        tensors = [wave if isinstance(wave, Tensor) else torch.from_numpy(wave) for wave in waves]
        order = sorted(range(len(tensors)), key=lambda i: -len(tensors[i]))  # threads end together: the longest first
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        run = map if self._pool is None else self._pool.map
        outputs: dict[int, Output | PredictionError] = {}
        results = run(lambda batch: self._outputs([tensors[i] for i in batch], embeddings), batches)
        for batch, found in zip(batches, results):
            outputs |= zip(batch, found)
        return [outputs[i] for i in range(len(tensors))]

    @torch.inference_mode()
    def _outputs(self, waves: list[Tensor], embeddings: bool) -> list[Output | PredictionError]:
        """Return the outputs for the waves of one batch; if they fail together, each is tried alone."""
        try:
            logits = self.model(*(tensor.to(self.device) for tensor in self._batch(waves)))
            values = (logits.softmax(1) if self.classes else logits).cpu()
            pooled = self._pooled.last.float().cpu().numpy() if embeddings else [None] * len(waves)
        except (RuntimeError, MemoryError, EncoderError) as error:
            if len(waves) == 1:
                return [self._failure(waves[0], error)]
            return [output for wave in waves for output in self._outputs([wave], embeddings)]
        finite = values.isfinite().all(1).tolist()
        return [
            Output(row, vector) if good else PredictionError("the model's outputs are not finite")
            for row, vector, good in zip(values.tolist(), pooled, finite)
        ]

    def _batch(self, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return one padded batch, of features if an encoder makes some; moved as int16 where all are such waves."""
        encodes = isinstance(self.source, Encoder)
        if not encodes and all(wave.dtype == torch.int16 for wave in waves):
            wave, lengths = pad(waves)
            return wave.to(self.device).float().mul_(2.0**-15), lengths
        waves = [wave.float() * 2.0**-15 if wave.dtype == torch.int16 else wave for wave in waves]
        return pad(list(map(self.source.encode, waves)) if encodes else waves)

    def _failure(self, wave: Tensor, error: Exception) -> PredictionError:
        reason = (str(error) or "out of memory").splitlines()[0]
        if is_out_of_memory(error):
            reason = f"it does not fit in memory; cut the file into shorter ones ({reason})"
        rate = self.sample_rate if wave.dim() == 1 else self.model.spectrogram.input_rate
        return PredictionError(f"{len(wave) / rate:.1f} s cannot be predicted: {reason}")

    def _result(self, found: Found) -> Result:
        if found.error:
            kind = AudioError if found.clip is None else PredictionError
            return kind(f"{printable(found.item.file)}: {found.error}")
        scores = Scores(zip(self.names, found.output.values)) if found.output else Scores()
        scores.flag, scores.shares = found.clip.flag, bool(self.classes)
        return scores


def _half_the_shortest(loaded: Checkpoint, sample_rate: int) -> float:
    """Return half the samples of the shortest training utterance; 0 if the checkpoint, of any origin, lacks it."""
    seconds = loaded.progress.get("shortest")
    return seconds / 2 * sample_rate if isinstance(seconds, (int, float)) and 0 < seconds < 1e6 else 0.0

"""From listed items to results, through a window in which batches are of similar length."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ser_fast.data.files import printable
from ser_fast.data.wav import AudioError
from ser_fast.prediction.listing import Item
from ser_fast.prediction.reading import Clip, Reader

# Clips, and samples, in memory and sorted by length at a time.
CLIPS_AT_ONCE, SAMPLES_AT_ONCE = 512, 1 << 25


class Read(NamedTuple):
    """A block of an item.

    Attributes:
        item: the listed audio.
        clips: its clips.
        error: why it could not be read, or ``""``.
        more: whether a block of the item follows.
        seconds: time that reading took.
    """

    item: Item
    clips: list[Clip]
    error: str = ""
    more: bool = False
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        """Return the number of samples, or of their features, in memory."""
        return sum(clip.samples.size for clip in self.clips if clip.samples is not None)


class Output(NamedTuple):
    """Outputs of the model for a clip.

    Attributes:
        values: probability of each class, or the value of each target.
        embedding: the input of the model's last layer, float32 ``[D]``, if requested.
    """

    values: list[float]
    embedding: np.ndarray | None = None

    @property
    def best(self) -> int:
        """Return the index of the largest value."""
        return max(range(len(self.values)), key=self.values.__getitem__)


class Found(NamedTuple):
    """Result of a clip, or of an item that could not be read.

    Attributes:
        item: the listed audio.
        clip: None if it could not be read.
        output: None with an error, or if the clip's flag says that there is nothing to predict.
        error: why there is no output, or ``""``.
    """

    item: Item
    clip: Clip | None
    output: Output | None
    error: str


def read(reader: Reader, item: Item, block: int = 0) -> Read:
    """Return a block of an item; its error if it cannot be read."""
    begin, clips, error, more = time.perf_counter(), [], "", False
    try:
        clips, more = reader.read(item, block)
    except AudioError as failure:
        error = str(failure).removeprefix(f"{printable(item.file)}: ")
    except MemoryError:
        error = "does not fit in memory"
    return Read(item, clips, error, more, time.perf_counter() - begin)


def read_all(reader: Reader, items: Iterable[Item]) -> Iterator[Read]:
    """Yield all blocks of the items."""
    for item in items:
        block, more = 0, True
        while more:
            found = read(reader, item, block)
            yield found
            block, more = block + 1, found.more


def results(
    predict: Callable[[list[np.ndarray]], list[Output | Exception]],
    blocks: Iterable[Read],
    chunk: int = CLIPS_AT_ONCE,
) -> Iterator[Found]:
    """Yield the result of each clip, in the order of the blocks, and that of each item that could not be read.

    Args:
        predict: :meth:`ser_fast.prediction.predictor.Predictor.predict`.
        blocks: what was read.
        chunk: as in :func:`windows`.
    """
    for window in windows(blocks, chunk):
        yield from predicted(predict, window)


def windows(blocks: Iterable[Read], chunk: int) -> Iterator[list[Read]]:
    """Yield the blocks in windows, which are predicted together.

    They depend on the blocks alone, and none reaches over a multiple of ``chunk`` items. Chunks that are predicted
    apart, on any machine, thus give the same batches and the same numbers.

    Args:
        blocks: all blocks of some items.
        chunk: number of items.
    """
    window: list[Read] = []
    clips = samples = items = 0
    for block in blocks:
        window.append(block)
        clips, samples = clips + max(1, len(block.clips)), samples + block.samples
        items += not block.more
        if clips >= CLIPS_AT_ONCE or samples >= SAMPLES_AT_ONCE or items == chunk:
            yield window
            window, clips, samples = [], 0, 0
            items %= chunk
    if window:
        yield window


def predicted(predict: Callable[[list[np.ndarray]], list], window: list[Read]) -> Iterator[Found]:
    """Yield the results of one window."""
    waves = [clip.samples for block in window for clip in block.clips if clip.samples is not None]
    outputs = iter(predict(waves) if waves else ())
    for item, clips, error, *_ in window:
        for clip in clips:
            output = None if clip.samples is None else next(outputs)
            failed = isinstance(output, Exception)
            yield Found(item, clip, None if failed else output, str(output) if failed else "")
        if error:
            yield Found(item, None, None, error)

"""Audio of a listed item as clips: whole, or in segments. No torch operator runs here, so processes may fork."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ser_fast.data.audio import duration, read_audio
from ser_fast.data.files import printable
from ser_fast.data.flags import NO_SPEECH, UNPREDICTED, flags
from ser_fast.data.sources import Source
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import pack
from ser_fast.prediction.listing import Item


class Clip(NamedTuple):
    """Audio that is predicted as one.

    Attributes:
        start: in the file, in seconds; None is the beginning.
        end: in seconds; None is the end.
        seconds: length.
        flag: keys of ``ser_fast.data.flags.FLAGS``.
        samples: int16 if that loses nothing, else float32 ``[N]``; None if the flag says that there is nothing to
            predict.
    """

    start: float | None
    end: float | None
    seconds: float
    flag: str
    samples: np.ndarray | None


@dataclass(frozen=True)
class Reader:
    """Reads items.

    Args:
        sample_rate: in hertz.
        frame: samples of one frame of the model.
        shortest: samples below which a clip is flagged as short.
        segment: seconds of a segment; None takes each item as one clip.
        hop: seconds from the start of a segment to that of the next.
        block: seconds of segments that are in memory at a time.
        speech: whether clips that are flagged as ``no_speech`` have no samples either.
    """

    sample_rate: int
    frame: int
    shortest: float = 0.0
    segment: float | None = None
    hop: float | None = None
    block: float = 300.0
    speech: bool = False

    @property
    def chunk(self) -> int:
        """Return the number of items, whole or of many segments each, that are read and predicted apart."""
        return 512 if self.segment is None else 16

    def read(self, item: Item, block: int = 0) -> tuple[list[Clip], bool]:
        """Return the clips of a block of an item, and whether a block follows.

        Segments start every ``hop``; the last ones end with the audio, and are left out below half of ``segment``,
        except the first. A block is segments of some minutes together; without ``segment`` it is the whole item.

        Args:
            item: the item.
            block: number of the block, from 0.

        Raises:
            AudioError: it cannot be read.
            MemoryError: it does not fit in memory.
        """
        if item.error:
            raise AudioError(f"{printable(item.file)}: {item.error}")
        if self.segment is None:
            wave = read_audio(item.file, self.sample_rate, item.start, item.end)
            return [self.clip(wave, item.file, item.start, item.end)], False
        begin, end = item.start or 0.0, duration(item.file) if item.end is None else item.end
        hop = self.segment if self.hop is None else self.hop
        count = 1 + max(0, math.floor((end - begin - self.segment / 2) / hop + 1e-6))
        size = max(1, int(self.block / self.segment))  # clips that overlap take memory each
        numbers = range(block * size, min(block * size + size, count))
        start, stop = begin + numbers[0] * hop, begin + numbers[-1] * hop + self.segment
        # The end of the file is not named: the length of an MP3 may be an estimate.
        wave = read_audio(item.file, self.sample_rate, start or None, stop if stop < end else item.end)
        clips = []
        for number in numbers:
            place = round(begin + number * hop, 6)
            offset = round((place - start) * self.sample_rate)
            part = wave[offset : offset + round(self.segment * self.sample_rate)]
            if len(part):
                clips.append(self.clip(part, item.file, place, round(place + len(part) / self.sample_rate, 6)))
        return clips, numbers[-1] + 1 < count

    def clip(
        self, wave: torch.Tensor, file: str | Source | None = None,
        start: float | None = None, end: float | None = None,
    ) -> Clip:  # fmt: skip
        """Return audio with its flags, and without samples where these say that there is nothing to predict.

        Args:
            wave: float32 ``[N]`` at the sample rate, N at least 1.
            file: what it was read from, whose channels are read again if the wave is weak; None for a wave in memory.
            start: where the wave starts in the file, in seconds; None is the beginning.
            end: where it ends, in seconds; None is the end.
        """
        flag = flags(wave, file, self.sample_rate, self.frame, self.shortest, start, end)
        withheld = UNPREDICTED | {NO_SPEECH} if self.speech else UNPREDICTED
        samples = None if withheld.intersection(flag.split()) else pack(wave.numpy())
        return Clip(start, end, len(wave) / self.sample_rate, flag, samples)

"""Reader of PCM WAV files, used without soundfile; it returns the same samples."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ser_fast.data.sources import Source, opened, shown

# Sample rates that are accepted, in hertz. A damaged header may say 1 Hz, and resampling would fill the memory.
RATES = range(1000, 768_001)
_MOST_CHANNELS = 1024  # as in libsndfile

# WAVE_FORMAT_PCM, and the sub-format of WAVE_FORMAT_EXTENSIBLE that means the same.
_PCM, _EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


_BYTE_ORDERS = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big", b"FORM": "big"}
UNKNOWN_SIZE = 0xFFFFFFFF


class AudioError(ValueError):
    """Audio that cannot be read; the message names the file and the reason."""


def riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, first byte and size of each chunk of a WAV or AIFF file; nothing for any other file."""
    head = file.read(12)
    order = _BYTE_ORDERS.get(head[:4])
    if order is None or head[8:] not in (b"WAVE", b"AIFF", b"AIFC"):
        return
    long_size = UNKNOWN_SIZE
    while len(header := file.read(8)) == 8:
        name, size = header[:4], int.from_bytes(header[4:], order)
        begin = file.tell()
        if name == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
        if name == b"data" and size == UNKNOWN_SIZE:
            size = long_size
        yield name, begin, size
        file.seek(begin + size + size % 2)


@dataclass
class PcmWav:
    """A PCM WAV file with the part of the interface of ``soundfile.SoundFile`` that ``read_audio`` uses.

    Args:
        audio: the file, or the one inside another.
        begin: offset of its samples, in bytes.
        frames: number of frames, which have one sample per channel.
        samplerate: in hertz.
        channels: number of channels.
        width: bytes of a sample, 1 to 4.
    """

    audio: Path | Source
    begin: int
    frames: int
    samplerate: int
    channels: int
    width: int
    format = "WAV"
    _position = 0

    def seekable(self) -> bool:
        """Return True; some formats of libsndfile are not."""
        return True

    def seek(self, frame: int) -> int:
        """Continue to read at this frame, which is returned."""
        self._position = frame
        return frame

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Return at most the next ``frames`` frames: float32 ``[frames, channels]`` in [-1, 1)."""
        size = self.channels * self.width
        count = min(frames, self.frames - self._position) * size
        with opened(self.audio) as file:
            file.seek(self.begin + self._position * size)
            raw = np.frombuffer(file.read(count), np.uint8)
        self._position += len(raw) // size
        # Samples are the top bytes of 32-bit integers, so that one scale fits every width.
        samples = np.zeros((len(raw) // self.width, 4), np.uint8)
        samples[:, 4 - self.width :] = raw.reshape(-1, self.width)
        if self.width == 1:
            samples[:, 3] ^= 0x80  # only 8-bit samples are unsigned
        scaled = samples.view("<i4").astype(np.float32) * np.float32(2**-31)
        return scaled.reshape(-1, self.channels)


def open_pcm(audio: Path | Source) -> PcmWav | None:
    """Open a PCM WAV file of up to 32 bits; return None for other formats.

    Python's ``wave`` does not suffice: before 3.12 it refuses WAVE_FORMAT_EXTENSIBLE, and it trusts the file size in
    the header, which is wrong in a file that was written to a pipe.

    Raises:
        AudioError: the suffix is ``.wav`` but the file is no WAV file, or its header is damaged.
    """
    name = shown(audio)
    refused = f"{name}: not readable as audio"
    with opened(audio) as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
            if name.lower().endswith(".wav"):
                raise AudioError(f"{refused}: not a WAV file")
            return None
        file.seek(0)
        described, begin, size = _header(file)
    if len(described) < 16:
        raise AudioError(f"{refused}: its header lacks the format or the samples")
    # RIFX is big-endian: its format matches neither of these, so it is left to soundfile.
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", described)
    is_pcm = tag == _PCM or (tag == _EXTENSIBLE and described[24:] == _PCM_GUID)
    if not is_pcm or not 1 <= bits <= 32:
        return None
    if not 1 <= channels <= _MOST_CHANNELS or rate == 0:
        raise AudioError(f"{refused}: {channels} channels at {rate} Hz")
    width = (bits + 7) // 8
    return PcmWav(audio, begin, size // (channels * width), rate, channels, width)


def _header(file: BinaryIO) -> tuple[bytes, int, int]:
    """Return the format chunk, up to 40 bytes, the offset of the samples and their size in bytes."""
    described = b""
    for name, begin, size in riff_chunks(file):
        if name == b"fmt ":
            described = file.read(min(size, 40))
        if name == b"data":
            # The header of a file that was written to a pipe does not contain its size.
            return described, begin, min(size, file.seek(0, os.SEEK_END) - begin)
    return b"", 0, 0

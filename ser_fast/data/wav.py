"""PCM WAV files where soundfile is missing, read to the same samples."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

# WAVE_FORMAT_PCM, and the sub-format by which WAVE_FORMAT_EXTENSIBLE says the same.
_PCM, _EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


_BYTE_ORDERS = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big", b"FORM": "big"}
UNKNOWN_SIZE = 0xFFFFFFFF


class AudioError(ValueError):
    """Audio that cannot be read; the message names the file and the reason."""


def riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each chunk of a WAV or AIFF file from its beginning; of any other file none."""
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
    """A PCM WAV file, with what :func:`ser_fast.data.audio.read_audio` uses of ``soundfile.SoundFile``.

    Args:
        path: the file.
        begin: the first byte of its samples.
        frames: how many there are, of one sample for each channel.
        samplerate: in hertz.
        channels: how many.
        width: bytes of a sample, 1 to 4.
    """

    path: Path
    begin: int
    frames: int
    samplerate: int
    channels: int
    width: int
    format = "WAV"
    _position = 0

    def seek(self, frame: int) -> None:
        self._position = frame

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """At most ``frames`` frames from where the last ones ended: float32 ``[frames, channels]`` in [-1, 1)."""
        size = self.channels * self.width
        count = min(frames, self.frames - self._position) * size
        raw = np.fromfile(self.path, np.uint8, count, offset=self.begin + self._position * size)
        self._position += len(raw) // size
        # At the top of 32 bits, where one scale fits every width.
        samples = np.zeros((len(raw) // self.width, 4), np.uint8)
        samples[:, 4 - self.width :] = raw.reshape(-1, self.width)
        if self.width == 1:
            samples[:, 3] ^= 0x80  # 8 bits alone are unsigned
        scaled = samples.view("<i4").astype(np.float32) * np.float32(2**-31)
        return scaled.reshape(-1, self.channels)


def open_pcm(path: Path) -> PcmWav | None:
    """The file if it is PCM WAV of up to 32 bits, None if it is of another format.

    Python's ``wave`` is not enough: before 3.12 it refuses WAVE_FORMAT_EXTENSIBLE, and it believes what the header
    says of the size of the whole file, which is wrong where the file was written to a pipe.

    Raises:
        AudioError: it is called ``.wav`` but is none, or its header is damaged.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
            if path.suffix.lower() == ".wav":
                raise AudioError(f"{path}: not readable as audio: not a WAV file")
            return None
        file.seek(0)
        described, begin, size = _header(file)
    if len(described) < 16:
        raise AudioError(f"{path}: not readable as audio: its header lacks the format or the samples")
    # RIFX has the other byte order, in which neither format is found here.
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", described)
    is_pcm = tag == _PCM or (tag == _EXTENSIBLE and described[24:] == _PCM_GUID)
    if not is_pcm or not 1 <= bits <= 32:
        return None
    if channels == 0 or rate == 0:
        raise AudioError(f"{path}: not readable as audio: {channels} channels at {rate} Hz")
    width = (bits + 7) // 8
    return PcmWav(path, begin, size // (channels * width), rate, channels, width)


def _header(file: BinaryIO) -> tuple[bytes, int, int]:
    """What the file says of its format, up to 40 bytes, the samples' first byte and how many bytes are there."""
    described = b""
    for name, begin, size in riff_chunks(file):
        if name == b"fmt ":
            described = file.read(min(size, 40))
        if name == b"data":
            # A file that was written to a pipe does not tell how long it is.
            return described, begin, min(size, file.seek(0, os.SEEK_END) - begin)
    return b"", 0, 0

"""Audio that is stored inside another file, such as a member of a tar archive."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ser_fast.data.files import printable


class Source(ABC):
    """An audio file inside another file: small, immutable and picklable, so that workers can open it themselves.

    Attributes:
        container: the file that holds it.
        name: name for messages, such as ``shard.tar:key.wav``.
    """

    container: Path
    name: str

    @property
    @abstractmethod
    def place(self) -> str:
        """Return its place in the container, such as an offset."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open it for reading; the file is seekable and ends where the audio ends.

        Raises:
            OSError: the container cannot be read.
        """


def opened(audio: Path | Source) -> BinaryIO:
    """Open a file, or audio inside one, for reading bytes."""
    return audio.open() if isinstance(audio, Source) else open(audio, "rb")


def shown(audio: Path | Source) -> str:
    """Return the name with which messages begin."""
    return printable(audio.name if isinstance(audio, Source) else audio)


def identity(audio: Path | Source) -> str:
    """Return the real path of a file, and the place in it of audio inside one; equal for the same audio only."""
    if isinstance(audio, Source):
        return f"{os.path.realpath(audio.container)}:{audio.place}"
    return os.path.realpath(audio)


def state(audio: Path | Source) -> tuple[str, int, int]:
    """Return identity, size in bytes and time of change in nanoseconds; they change if the file does.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(audio.container if isinstance(audio, Source) else audio)
    return identity(audio), status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Section(Source):
    """A run of bytes within a file, such as a member of an uncompressed tar archive.

    Args:
        container: the file.
        name: name for messages.
        offset: first byte.
        size: number of bytes.

    Example:
        >>> Section(Path("a.tar"), "a.tar:angry.wav", 512, 44).place
        '512+44'
    """

    container: Path
    name: str
    offset: int
    size: int

    @property
    def place(self) -> str:
        """Return offset and size."""
        return f"{self.offset}+{self.size}"

    def open(self) -> BinaryIO:
        """Open the section; only what is read of it is read from the file."""
        return io.BufferedReader(_Section(open(self.container, "rb", buffering=0), self.offset, self.size))


@dataclass(frozen=True)
class Bytes(Source):
    """An audio file in memory, which lies in no container.

    Args:
        name: name for messages.
        data: the bytes of the file.

    Example:
        >>> Bytes("upload", b"RIFF").open().read()
        b'RIFF'
    """

    name: str
    data: bytes = field(repr=False)
    container = Path()
    place = ""

    def open(self) -> BinaryIO:
        """Open the bytes, which are not copied."""
        return io.BytesIO(self.data)


class _Section(io.RawIOBase):
    def __init__(self, file: io.FileIO, offset: int, size: int):
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

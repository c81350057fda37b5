"""Read audio files as mono float32 tensors at one sampling rate."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import torch

from ser_fast._require import require
from ser_fast.data.extras import import_extra
from ser_fast.data.failures import POINTER, unreadable
from ser_fast.data.files import AUDIO_SUFFIXES, Found, passed_over, printable, search
from ser_fast.data.pace import progress
from ser_fast.data.sources import Source, opened, shown
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import RATES, UNKNOWN_SIZE, AudioError, PcmWav, open_pcm, riff_chunks

if TYPE_CHECKING:
    import soundfile

T = TypeVar("T")

# Annotations are rounded, so an end may lie this far beyond the end of the file.
_END_SLACK_SECONDS = 0.01

_BLOCK_SAMPLES = 1 << 20

_AHEAD = 8  # utterances that each thread may have read before they are used

# Full scale is 1, or 2^31 in files of floats that were scaled as integers; beyond, spectra overflow.
_LOUDEST = 2.0**31

_LFS = b"version https://git-lfs"

# Sizes of the samples that ffmpeg and SoX write into a header when the output is a pipe.
_STREAMED_SIZES = (UNKNOWN_SIZE, 0x7FFFF000)


def find_audio(path: str | os.PathLike[str]) -> list[Path]:
    """Return the audio files of :func:`search_audio`."""
    return search_audio(path).audio


def search_audio(path: str | os.PathLike[str]) -> Found:
    """Return the file itself, or what :func:`ser_fast.data.files.search` finds below the folder.

    Raises:
        AudioError: ``path`` does not exist or holds no audio file.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{printable(path)}: no such file or folder")
    if not path.is_dir():
        return Found([path])
    found = search(path)
    if not found.audio:
        others = passed_over(found)
        wanted = f"it must be a folder with files of {', '.join(AUDIO_SUFFIXES)}"
        raise AudioError(f"{printable(path)}: no audio file in this folder; {wanted}{others and '; '}{others}")
    return found


def read_audio(
    path: str | os.PathLike[str] | Source,
    sample_rate: int = 16000,
    start: float | None = None,
    end: float | None = None,
) -> torch.Tensor:
    """Return the samples of a file between ``start`` and ``end``, averaged over its channels and resampled.

    Only this part of the file is read. A truncated MP3 or Ogg file is not always detected, since its header need not
    contain its length.

    Args:
        path: a file that libsndfile can read, or one inside another file; without soundfile, a PCM WAV file of up
            to 32 bits.
        sample_rate: sampling rate of the result, 1000 to 768000 hertz.
        start: in seconds; None is the beginning.
        end: in seconds; None is the end. Up to 10 ms beyond the end of the file are accepted.

    Returns:
        float32 tensor ``[N]``, integer formats scaled to [-1, 1).

    Raises:
        AudioError: the file is missing, not audio, empty or truncated, has an implausible sample rate, contains NaN,
            infinite or absurdly large samples, or ``start`` to ``end`` is not within it; or soundfile is not
            installed and the file is not PCM WAV, or soxr is not installed and the rates differ.
        ValueError: ``sample_rate`` is out of range.
    """
    _check_sample_rate(sample_rate)
    name = shown(path if isinstance(path, Source) else Path(path))
    with open_audio(path, start, end) as (file, first, last):
        rate = file.samplerate
        # libsndfile cannot seek in GSM 6.10 and other formats, not even to the first frame.
        skipped = 0 if file.seekable() else first
        place = file.seek(first) if file.seekable() else 0
        if place != first - skipped:  # of a damaged MP3
            raise AudioError(f"{name}: damaged, frame {first} is found at {place}")
        samples = _read_mono(file, skipped + last - first)[skipped:]
        # libsndfile estimates the length of an MP3 without a Xing header.
        estimated = file.format == "MP3" and end is None
    if len(samples) < last - first and not (estimated and len(samples)):
        raise AudioError(f"{name}: truncated, has {len(samples)} of {last - first} frames")
    return _at_rate(name, samples, rate, sample_rate)


@contextlib.contextmanager
def open_audio(
    path: str | os.PathLike[str] | Source, start: float | None = None, end: float | None = None
) -> Iterator[tuple[soundfile.SoundFile | PcmWav, int, int]]:
    """Open a file, and yield it with the first frame between ``start`` and ``end`` and the one after the last.

    Args:
        path, start, end: as in :func:`read_audio`.

    Raises:
        AudioError: as in :func:`read_audio`, as far as the header and the size of the file show it.
    """
    audio = path if isinstance(path, Source) else Path(path)
    name = shown(audio)
    if name.lower().endswith(".raw"):
        raise AudioError(f"{name}: not readable as audio: a .raw file has no header")
    try:
        # Opening a pipe would wait for a process that writes to it.
        require(isinstance(audio, Source) or not audio.is_fifo(), f"{name}: is a pipe", "a file", AudioError)
        with opened(audio) as file:
            _refuse_damage(name, file)
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file") from error
    except OSError as error:
        raise AudioError(f"{name}: {error.strerror or error}") from error

    with _open(audio) as file:
        _check_rate(name, file.samplerate)
        yield file, *_span(name, file.frames, file.samplerate, start, end)


def loudest(samples: torch.Tensor) -> float:
    """Return the largest absolute sample of a wave ``[N]``, N at least 1; NaN if it holds one.

    By NumPy, as whatever is done to one file after the other: a wave is too short for torch's threads.
    """
    wave = samples.numpy()
    return max(float(wave.max()), -float(wave.min()))


def largest_sample(
    path: str | os.PathLike[str] | Source, start: float | None = None, end: float | None = None
) -> float:
    """Return the largest absolute sample of all channels of a part of a file that :func:`read_audio` can read."""
    with open_audio(path, start, end) as (file, first, last):
        frames = last - file.seek(first) if file.seekable() else last
        return max((float(np.abs(block).max()) for block in _blocks(file, frames)), default=0.0)


def duration(path: str | os.PathLike[str]) -> float:
    """Return the seconds of a file by its header.

    Raises:
        AudioError: as in :func:`read_audio`, as far as the header and the size of the file show it.
    """
    with open_audio(path) as (file, _, last):
        return last / file.samplerate


def read_utterance(utterance: Utterance, sample_rate: int = 16000) -> torch.Tensor:
    """Return the samples of an utterance, from its file or from memory.

    Args:
        utterance: the utterance, with a path, a source or samples.
        sample_rate: sampling rate of the result, in hertz.

    Returns:
        float32 tensor ``[N]`` on the CPU; may share memory with ``utterance.samples``.

    Raises:
        AudioError: as in :func:`read_audio`, or the samples in memory are not ``[N]`` or have no rate.
        ValueError: ``sample_rate`` is out of range.
    """
    _check_sample_rate(sample_rate)
    name, audio, samples, rate = utterance.name, utterance.audio, utterance.samples, utterance.sample_rate
    if samples is None:
        found = f"{name}: has neither path nor samples nor source"
        require(audio is not None, found, "given one of them", AudioError)
        return read_audio(audio, sample_rate, utterance.start, utterance.end)

    good = samples.dim() == 1 and samples.is_floating_point()
    require(good, f"{name}: samples is {samples.dtype} {list(samples.shape)}", "torch.float32 [N]", AudioError)
    _check_rate(name, rate)
    first, last = _span(name, len(samples), rate, utterance.start, utterance.end)
    return _at_rate(name, samples[first:last].detach().to("cpu", torch.float32), rate, sample_rate)


def read_corpus(
    utterances: Sequence[Utterance],
    sample_rate: int = 16000,
    skip_bad: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Utterance], list[torch.Tensor], list[AudioError]]:
    """Read all utterances, one per core at a time.

    Args:
        utterances: the utterances.
        sample_rate: sampling rate of the results, in hertz.
        skip_bad: return the errors of unreadable utterances instead of raising one.
        report: called with a line now and then while a large corpus is read.

    Returns:
        The readable utterances in the given order, their samples (float32 ``[N]``), and an error for each
        unreadable one.

    Raises:
        UnreadableError: some cannot be read and ``skip_bad`` is false, or it leaves nothing, or one of several
            classes; the message lists five and counts the reasons.
    """

    results = list(read_each(utterances, lambda utterance: read_utterance(utterance, sample_rate), report))
    return readable(utterances, results, skip_bad)


def read_each(
    utterances: Sequence[Utterance],
    read: Callable[[Utterance], T],
    report: Callable[[str], None] = lambda line: None,
    task: str = "read",
    threads: int | None = None,
) -> Iterator[T | AudioError]:
    """Yield ``read(utterance)`` for each utterance in order, or its ``AudioError``; threads read ahead.

    Args:
        utterances: the utterances.
        read: called with each of them, in a thread.
        report: shows the progress with a large corpus, as :func:`ser_fast.data.pace.progress` says.
        task: verb of the lines that it is called with.
        threads: number of threads; one per core by default.
    """

    def attempt(utterance: Utterance) -> T | AudioError:
        try:
            return read(utterance)
        except AudioError as error:
            return error

    with progress(report, task, len(utterances)) as advance:
        for done, result in enumerate(_map_ahead(attempt, utterances, threads or os.cpu_count() or 1), 1):
            yield result
            advance(done)


def _map_ahead(function: Callable, items: Iterable, threads: int) -> Iterator:
    """Yield ``function(item)`` in order, as ``Executor.map`` but with few results that wait to be used."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def readable(
    utterances: Sequence[Utterance], results: Sequence[T | AudioError], skip_bad: bool
) -> tuple[list[Utterance], list[T], list[AudioError]]:
    """Return the utterances that could be read, what was read of each, and the errors of the others.

    Raises:
        AudioError: as in :func:`read_corpus`.
    """
    errors = [result for result in results if isinstance(result, AudioError)]
    good = [pair for pair in zip(utterances, results, strict=True) if not isinstance(pair[1], AudioError)]
    before, left = ({utterance.label for utterance in some} for some in (utterances, [one for one, _ in good]))
    lost = ""
    if skip_bad and len(left) < min(2, len(before)):
        lost = f"; skip_bad leaves those of {', '.join(left)} alone" if left else "; skip_bad leaves none"
    if errors and (lost or not skip_bad):
        raise unreadable(errors, len(results), lost)
    return [utterance for utterance, _ in good], [result for _, result in good], errors


def _refuse_damage(name: str, file: BinaryIO) -> None:
    """Raise ``AudioError`` for what libsndfile does not report, or not clearly."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    file.seek(0)
    if file.read(len(_LFS)) == _LFS:
        raise AudioError(f"{name}: {POINTER}")
    file.seek(0)
    if missing := _missing_bytes(file, size):
        raise AudioError(f"{name}: truncated, {missing} bytes less than its header says")


def _missing_bytes(file: BinaryIO, size: int) -> int:
    """Return how many bytes of samples a WAV or AIFF file of this size lacks."""
    for name, begin, length in riff_chunks(file):
        if name in (b"data", b"SSND"):
            return 0 if length in _STREAMED_SIZES else max(0, begin + length - size)
    return 0


def _open(audio: Path | Source) -> contextlib.AbstractContextManager[soundfile.SoundFile | PcmWav]:
    """Open the file with soundfile, or with the reader of PCM WAV if soundfile is not installed."""
    try:
        soundfile = import_extra("soundfile", "reading audio")
    except ImportError as error:
        wav = open_pcm(audio)
        if wav is None:
            raise AudioError(f"{shown(audio)}: {error}; without it only PCM WAV can be read") from error
        return contextlib.nullcontext(wav)
    return _by_libsndfile(soundfile, audio)


@contextlib.contextmanager
def _by_libsndfile(soundfile: ModuleType, audio: Path | Source) -> Iterator[soundfile.SoundFile]:
    with contextlib.ExitStack() as stack:
        if isinstance(audio, Source):
            given = stack.enter_context(audio.open())
        else:
            # soundfile encodes a str strictly; on Windows it needs one.
            given = audio if os.name == "nt" else os.fsencode(audio)
        try:
            with soundfile.SoundFile(given) as file:
                yield file
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{shown(audio)}: not readable as audio: {error.error_string}") from error


def _read_mono(file: soundfile.SoundFile | PcmWav, frames: int) -> torch.Tensor:
    """Return at most ``frames`` frames, averaged over the channels: ``[N]``."""
    with np.errstate(over="ignore", invalid="ignore"):  # _at_rate refuses such samples
        waves = [block[:, 0] if file.channels == 1 else block.mean(axis=1) for block in _blocks(file, frames)]
    return torch.from_numpy(waves[0] if len(waves) == 1 else np.concatenate([np.empty(0, np.float32), *waves]))


def _blocks(file: soundfile.SoundFile | PcmWav, frames: int) -> Iterator[np.ndarray]:
    """Yield at most ``frames`` frames ``[n, channels]``; a damaged header may claim more than fits in memory."""
    step = max(1, _BLOCK_SAMPLES // file.channels)
    while frames > 0:
        block = file.read(min(frames, step), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        yield block
        frames -= len(block)


def _span(name: str, frames: int, rate: int, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first frame of ``start`` to ``end`` seconds and the one after the last."""
    if frames == 0:
        raise AudioError(f"{name}: holds no samples (0 frames)")
    seconds = frames / rate
    begin = 0.0 if start is None else start
    stop = seconds if end is None else end
    if 0.0 <= begin < stop <= seconds + _END_SLACK_SECONDS:
        first, last = round(begin * rate), min(round(stop * rate), frames)
        if first < last:
            return first, last
    raise AudioError(f"{name}: start={start}, end={end}; it must be 0 <= start < end <= {seconds:.3f} seconds")


def _check_sample_rate(sample_rate: int) -> None:
    require(sample_rate in RATES, f"sample_rate is {sample_rate}", f"{RATES[0]} to {RATES[-1]} hertz")


def _check_rate(name: str, rate: int | None) -> None:
    """Raise ``AudioError`` for a sample rate, of a header or of samples in memory, that audio cannot have."""
    require(rate in RATES, f"{name}: its sample rate is {rate}", f"{RATES[0]} to {RATES[-1]} hertz", AudioError)


def resampled_length(frames: int, rate: int, sample_rate: int) -> int:
    """Return the length to which soxr resamples so many frames."""
    return int(frames / (rate / sample_rate) + 0.5)


def _at_rate(name: str, samples: torch.Tensor, rate: int, sample_rate: int) -> torch.Tensor:
    largest = loudest(samples)
    if not math.isfinite(largest):
        raise AudioError(f"{name}: holds NaN or infinite samples")
    require(largest <= _LOUDEST, f"{name}: the largest sample is {largest:.3g}", "in -1..1, or to 2^31", AudioError)
    if rate == sample_rate:
        return samples
    try:
        soxr = import_extra("soxr", f"resampling from {rate} to {sample_rate} Hz")
    except ImportError as error:
        raise AudioError(f"{name}: {error}") from error
    resampled = soxr.resample(samples.numpy(), rate, sample_rate, quality="HQ")
    if len(resampled) == 0:
        raise AudioError(f"{name}: {len(samples)} samples at {rate} Hz are none at {sample_rate} Hz")
    return torch.from_numpy(resampled)

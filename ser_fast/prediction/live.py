"""Predictions of audio that is still being recorded, over a window that moves along."""

import threading
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ser_fast._require import require
from ser_fast.data.audio import loudest
from ser_fast.data.extras import import_extra
from ser_fast.data.wav import RATES
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.prediction.predictor import Predictor

WINDOW = 3.0  # seconds, about an acted utterance
STEP = 0.03  # seconds
LONGEST = 60.0  # seconds of a window
_FRAMES_SECONDS = 5.0  # frames of a spectrogram that wait for an update


class Update(NamedTuple):
    """Prediction of the last seconds of a recording.

    Attributes:
        samples: samples of the recording, at its own rate, up to the end of the window.
        seconds: length of the window.
        flag: keys of ``ser_fast.data.flags.FLAGS`` that hold for the window.
        values: probabilities of the classes, or values of a regression; None if the flag says that there is nothing
            to predict, or the model's outputs are not finite.
        weights: attention of the model to the window, as its ``return_weights`` gives it; None if there is none.
        frames: frames ``[n, F]`` of the spectrogram that are new since the last update.
        work: seconds that this update took.
    """

    samples: int
    seconds: float
    flag: str
    values: list[float] | None
    weights: Tensor | None
    frames: Tensor
    work: float


class Live:
    """Predicts the last seconds of a recording while it goes on.

    An update is the model's output for the last ``seconds`` as an utterance of their own: any model has one,
    also a bidirectional one, and it equals the prediction of a file that was cut there. :meth:`push` and
    :meth:`update` may be called by two threads. An update takes the newest window, so that the delay stays below
    ``step`` and the time of two updates however slow the model is. The delay of the resampling, if the rates differ,
    comes on top; :attr:`Update.samples` counts what has left it.

    Args:
        predictor: the model.
        sample_rate: of the recording, 1000 to 768000 hertz.
        seconds: length of the window, from a frame of the model to a minute; at the beginning there is less.
        step: seconds of new audio before an update is due.
        spectrogram: the updates carry its frames.

    Raises:
        ValueError: an argument is out of range.
        ImportError: the rates differ and soxr is not installed.

    Example::

        live = Live(Predictor(), 48000)
        for chunk in microphone:  # float32 [n], any n
            live.push(chunk)
            if (update := live.update()) and update.values:
                print(update.values)
    """

    def __init__(
        self,
        predictor: Predictor,
        sample_rate: int,
        seconds: float = WINDOW,
        step: float = STEP,
        spectrogram: PowerSpectrogram | None = None,
    ):
        good = predictor.source is None
        require(good, "predictor takes features in place of a spectrogram", "one that takes waves, to run live")
        require(sample_rate in RATES, f"sample_rate is {sample_rate}", f"{RATES[0]} to {RATES[-1]} hertz")
        self._reader, rate = predictor.reader(), predictor.sample_rate
        shortest = self._reader.frame / rate
        allowed = f"in {shortest}..{LONGEST:g} s, from a frame of the model to a minute"
        require(shortest <= seconds <= LONGEST, f"seconds is {seconds}", allowed)
        require(0 < step <= seconds, f"step is {step}", f"above 0 and at most seconds, {seconds}")
        self._predictor, self._scale = predictor, sample_rate / rate
        self._size, self._step = round(seconds * rate), max(1, round(step * rate))
        self._resampler = None
        if sample_rate != rate:
            soxr = import_extra("soxr", f"resampling from {sample_rate} to {rate} Hz")
            self._resampler = soxr.ResampleStream(sample_rate, rate, 1, dtype="float32", quality="HQ")
        self._stream = spectrogram and spectrogram.stream()
        bins = spectrogram.bins[1] - spectrogram.bins[0] if spectrogram else 0
        self._most_frames = round(_FRAMES_SECONDS * rate / spectrogram.hop_length) if spectrogram else 0
        self._lock = threading.Lock()
        self._wave, self._frames = torch.empty(0), torch.empty(0, bins)
        self._heard = self._taken = 0

    def push(self, samples: np.ndarray) -> None:
        """Append samples to the recording.

        Args:
            samples: float32 ``[n]`` with full scale 1, any n.

        Raises:
            ValueError: they are not ``[n]``, not float32, or not finite.
        """
        good = samples.ndim == 1 and samples.dtype == np.float32
        require(good, f"samples is {samples.dtype} {list(samples.shape)}", "float32 [n]")
        if len(samples) == 0:
            return
        wave = torch.from_numpy(np.array(samples))  # a copy: the caller may use its buffer again
        require(np.isfinite(loudest(wave)), "samples holds NaN or infinity", "finite")
        wave = wave.clamp_(-1, 1)
        if self._resampler is not None:
            wave = torch.from_numpy(self._resampler.resample_chunk(wave.numpy()))
        if len(wave) == 0:  # it is still in the resampler
            return
        with torch.inference_mode(), self._lock:
            if self._stream is not None:
                self._frames = torch.cat([self._frames, self._stream(wave[None])[0]])[-self._most_frames :]
            self._wave = torch.cat([self._wave, wave])[-self._size :]
            self._heard += len(wave)

    @property
    def due(self) -> bool:
        """Return whether ``step`` seconds are new since the last update."""
        return self._heard - self._taken >= self._step

    def update(self) -> Update | None:
        """Return the prediction of the newest window; None if none is due."""
        begin = time.perf_counter()
        with self._lock:
            if not self.due:
                return None
            wave, frames, self._taken = self._wave, self._frames, self._heard
            self._frames = frames[:0]
            samples = round(self._heard * self._scale)
        clip = self._reader.clip(wave)
        values, weights = (None, None) if clip.samples is None else self._predicted(wave)
        return Update(samples, clip.seconds, clip.flag, values, weights, frames, time.perf_counter() - begin)

    @torch.inference_mode()
    def _predicted(self, wave: Tensor) -> tuple[list[float] | None, Tensor | None]:
        """Return the outputs for a window and the attention to it."""
        outputs, weights = self._predictor.model(wave[None].to(self._predictor.device), return_weights=True)
        values = outputs.softmax(1) if self._predictor.classes else outputs
        if not values.isfinite().all():
            return None, None
        return values[0].tolist(), None if weights is None else weights[0]

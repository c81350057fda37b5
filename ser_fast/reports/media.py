"""Audio, spectrogram and attention of an utterance, small enough for a page."""

import io
import os
import wave as riff
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d

from ser_fast.data.utterance import Utterance
from ser_fast.reports import figures

PICTURE = (400, 100)  # most columns and rows of a spectrogram
POINTS = 200  # most values of a curve of attention
RANGE = 80.0  # decibels below the maximum
# Red, green and blue of 256 levels.
COLOURS = (255 * colormaps["magma"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


class Curve(NamedTuple):
    """Attention to an utterance.

    Attributes:
        levels: up to :data:`POINTS` values, 255 for the peak.
        begin: where the first begins, in seconds.
        end: where the last ends, in seconds.
        peak: the largest share of a frame, a mean of neighbours where these are one value.
    """

    levels: bytes
    begin: float
    end: float
    peak: float


class Picture(NamedTuple):
    """A spectrogram as JPEG, from ``begin`` to ``end`` in seconds and from 0 to ``top`` hertz."""

    jpeg: bytes
    begin: float
    end: float
    top: float


def audio(wave: Tensor, sample_rate: int) -> tuple[bytes, str]:
    """Return a wave ``[N]`` as a file, and its MIME type: FLAC of 16 bits or, without soundfile, WAV."""
    samples = np.rint(wave.double().clamp(-1, 1 - 2**-15).numpy() * 2**15).astype("<i2")
    file = io.BytesIO()
    try:
        import soundfile

        soundfile.write(file, samples, sample_rate, format="FLAC", subtype="PCM_16")
        return file.getvalue(), "audio/flac"
    except (ImportError, OSError, RuntimeError):  # no soundfile, no libsndfile, or a rate that FLAC does not have
        file = io.BytesIO()
    with riff.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(samples.tobytes())
    return file.getvalue(), "audio/wav"


def picture(front: nn.Module, wave: Tensor) -> Picture:
    """Return the upper 80 dB of the power of a wave ``[N]`` in the bins of a model's spectrogram."""
    found = figures.spectrogram(front, wave)
    decibel = found.values.T.flip(0).numpy()
    grey = np.clip((decibel - decibel.max() + RANGE) * (255 / RANGE), 0, 255).astype(np.uint8)
    size = tuple(map(min, grey.shape[::-1], PICTURE))
    grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    file = io.BytesIO()
    Image.fromarray(COLOURS[grey]).save(file, "JPEG", quality=60)
    end = found.first + len(found.values) * found.step
    return Picture(file.getvalue(), found.first, end, found.top)


def attention(model: nn.Module, taken: Tensor) -> Curve | None:
    """Return the attention of a model in evaluation mode to a wave ``[N]``, or features; None if it has none."""
    with torch.no_grad():
        _, weights = model(taken[None], return_weights=True)
    return None if weights is None else curve(model, weights[0])


def curve(model: nn.Module, weights: Tensor) -> Curve:
    """Return the attention of a model as a curve.

    Args:
        model: the model.
        weights: its weights for one utterance, as :func:`ser_fast.reports.figures.frame_attention` takes them.
    """
    front, share = model.spectrogram, figures.frame_attention(weights.cpu())
    first = (front.win_length - front.hop_length) / 2 / front.sample_rate
    end = first + len(share) * model.weights_hop / front.sample_rate
    if len(share) > POINTS:
        share = adaptive_avg_pool1d(share[None], POINTS)[0]
    peak = float(share.max())
    levels = (share * (255 / max(peak, 1e-30))).round().to(torch.uint8)
    return Curve(levels.numpy().tobytes(), first, end, peak)


def link(utterance: Utterance, page: Path) -> str:
    """Return the address of an utterance's file, relative to a page in HTML; ``""`` if it is no file of its own."""
    if utterance.path is None:
        return ""
    path = os.path.realpath(utterance.path)
    try:
        address = quote(os.fsencode(os.path.relpath(path, os.path.realpath(page.parent)).replace(os.sep, "/")))
    except ValueError:  # on another drive
        address = Path(path).as_uri()
    if utterance.start is None and utterance.end is None:
        return address
    ends = [utterance.start or 0] if utterance.end is None else [utterance.start or 0, utterance.end]
    return f"{address}#t={','.join(map(_seconds, ends))}"


def _seconds(value: float) -> str:
    """Return a time in milliseconds' precision; a media fragment has no exponents."""
    return f"{value:.3f}".rstrip("0").rstrip(".")

"""Frames of audio that is still arriving: chunks of a wave in, spectrogram frames out, the same as the whole wave's.

A stream and a GRU of one direction, which carries its state, make a model run while somebody speaks::

    gru = ser_fast.GRU(80, 128, batch_first=True)
    stream, state = ser_fast.MelSpectrogram().stream(), None
    for chunk in microphone:  # [B, n], any n
        frames = stream(chunk)  # [B, t, 80], all that became complete
        if frames.shape[1]:
            y, state = gru(frames, state)
    y, state = gru(stream.finish(), state)  # here, with center=True, there is a frame or more

A bidirectional GRU cannot run so: its second direction begins at the end, and every output depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast import checks

if TYPE_CHECKING:
    from ser_fast.power_spectrogram import PowerSpectrogram


class SpectrogramStream:
    """A spectrogram of rows that arrive in chunks; ``spectrogram.stream()`` makes it.

    The frames of all chunks and of :meth:`finish`, one after the other, are those of the whole wave: bit for bit in
    the compiled CPU kernels, up to rounding where torch's FFT or the mel filters' product takes part, since their
    order of addition depends on the number of frames. A window or its padding of samples is kept from call to call,
    however long the wave; where chunks require a gradient, so is the whole graph.

    With ``center`` and ``pad_mode="reflect"`` nothing comes before n_fft // 2 + 1 samples have, since a shorter wave
    is an error. All rows have the same number of samples.

    Args:
        spectrogram: a :class:`ser_fast.PowerSpectrogram` or :class:`ser_fast.MelSpectrogram`.

    Raises:
        ValueError: circular padding, which begins with the wave's end.
    """

    def __init__(self, spectrogram: PowerSpectrogram):
        n_fft, width = spectrogram.n_fft, spectrogram.win_length
        if spectrogram.center and spectrogram.pad_mode == "circular":
            raise ValueError(
                "SpectrogramStream: pad_mode is 'circular', which begins with the wave's end; "
                "it must be 'reflect', 'constant' or 'replicate'"
            )
        self.spectrogram = spectrogram
        # The parts of torch.stft's padding that windows centred in n_fft see.
        self._left = n_fft // 2 - (n_fft - width) // 2 if spectrogram.center else 0
        self._right = width - n_fft % 2 - self._left if spectrogram.center else 0
        # Of fewer samples the spectrogram itself makes what it can: an error, or a frame filled up with zeros.
        reflected = n_fft // 2 + 1 if spectrogram.pad_mode == "reflect" else 1
        self._least = reflected if spectrogram.center else width
        self._begin()

    def _begin(self) -> None:
        self._kind = None  # of this utterance's chunks
        self._held = None  # [B, n], the last samples
        self._padded = False  # whether there were enough to pad them on the left
        self._skip = 0  # how many of these and of coming samples lie before the next frame

    def __call__(self, chunk: Tensor) -> Tensor:
        """All frames ``[B, t, F]``, t ≥ 0, that the samples ``chunk`` ``[B, n]``, n ≥ 0, complete.

        Raises:
            RuntimeError: a chunk that does not fit, by name; the stream goes on as if it had not been given.
        """
        kind = self._check(chunk)
        samples = chunk.to(self.spectrogram.window.dtype)
        samples = samples / 32768 if chunk.dtype == torch.int16 else samples
        held = samples if self._held is None else torch.cat([self._held, samples], 1)
        padded = self._padded or held.shape[1] >= self._least
        if padded and not self._padded:
            held = self._pad(held, self._left, 0)
        frames, used = self._complete(held, self._skip) if padded else (self._none(held), 0)
        # The padding on the right will be made of the last samples.
        dropped = max(0, min(used, held.shape[1] - self._right - 1))
        self._kind, self._held, self._padded, self._skip = kind, held[:, dropped:].clone(), padded, used - dropped
        return frames

    def finish(self) -> Tensor:
        """The frames ``[B, t, F]``, t ≥ 0, that only the end completes; the next chunk begins another utterance.

        They are those that reach into the padding on the right, or without ``center`` the one frame, filled up with
        zeros, of a wave shorter than a window.

        Raises:
            RuntimeError: no chunk was given; a wave too short to be reflected, as by the spectrogram itself.
        """
        op = "SpectrogramStream"
        checks.require(self._held is not None, op, "finish comes before the first chunk", "called after one")
        held, padded, skip = self._held, self._padded, self._skip
        self._begin()
        if padded:
            return self._complete(self._pad(held, 0, self._right), skip)[0]
        return self.spectrogram(held) if held.shape[1] else self._none(held)

    def _pad(self, held: Tensor, left: int, right: int) -> Tensor:
        return F.pad(held, (left, right), mode=self.spectrogram.pad_mode) if self.spectrogram.center else held

    def _complete(self, held: Tensor, skip: int) -> tuple[Tensor, int]:
        """All frames of the held samples, the first after ``skip`` of them, and where the next one begins."""
        width, hop = self.spectrogram.win_length, self.spectrogram.hop_length
        count = 1 + (held.shape[1] - skip - width) // hop
        if count <= 0:
            return self._none(held), skip
        end = skip + (count - 1) * hop + width
        return self.spectrogram._spectra(held[:, skip:end], None, center=False), skip + count * hop

    def _none(self, held: Tensor) -> Tensor:
        return held.new_empty(len(held), 0, len(self.spectrogram.mean))

    def _check(self, chunk: Tensor) -> dict:
        """What the chunks of an utterance have in common."""
        op, window = "SpectrogramStream", self.spectrogram.window
        checks.tensors(op, chunk=chunk)
        good = chunk.dim() == 2 and len(chunk) > 0
        checks.require(good, op, f"chunk has shape {list(chunk.shape)}", "[B, n] with B at least 1")
        checks.require(chunk.device == window.device, op, f"chunk is on {chunk.device}", f"on {window.device}")
        checks.dtype(op, "chunk", chunk, window.dtype, torch.int16)
        kind = {"batch size": len(chunk), "dtype": chunk.dtype, "device": chunk.device}
        for name, value in kind.items():
            first = value if self._kind is None else self._kind[name]
            checks.require(value == first, op, f"chunk has {name} {value}", f"{first}, as in the utterance's first")
        if checks.readable(chunk) and not chunk.isfinite().all():
            row, sample = (~chunk.isfinite()).nonzero()[0].tolist()
            checks.require(False, op, f"chunk[{row}, {sample}] is {chunk[row, sample]}", "finite")
        return kind

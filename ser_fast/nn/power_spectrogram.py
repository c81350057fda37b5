"""The power spectrogram as a module, and as a stream over audio that is still being recorded."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.nn.inference import recordable
from ser_fast.ops import checks
from ser_fast.ops.checks import HALF
from ser_fast.ops.power_spectrogram import FLOOR, PAD_MODES, frame_counts, power_spectrogram


class Constants(nn.Module):
    """Base class of modules whose buffers are constants.

    They are never cast to half precision, where power spectrograms overflow. On the meta device they have no values;
    ``to_empty`` and :meth:`reset_parameters` write them.
    """

    def __init__(self):
        super().__init__()
        self._constants = {}

    def register_constant(self, name: str, value: Tensor, persistent: bool = True) -> None:
        """Register a buffer with a copy of ``value``, which is computed on the CPU, on torch's default device."""
        self._constants[name] = value.detach().clone()
        self.register_buffer(name, torch.empty(value.shape, dtype=value.dtype).copy_(value), persistent)

    def reset_parameters(self) -> None:
        """Set the buffers to the values of the construction, or to the statistics set since."""
        for name, value in self._constants.items():
            getattr(self, name).copy_(value)

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = getattr(self, name)
            if now.dtype in HALF:
                setattr(self, name, value.to(now.device))
        if any(value.is_meta and not getattr(self, name).is_meta for name, value in before.items()):
            self.reset_parameters()
        return self


class Normalized(Constants):
    """Base class of modules that normalise each feature of a frame once statistics are set."""

    @property
    def _name(self) -> str:
        return type(self).__name__

    def register_statistics(self, count: int) -> None:
        """Register the mean and the standard deviation ``[count]`` as buffers, without a normalisation."""
        self.register_constant("mean", torch.zeros(count, device="cpu"))
        self.register_constant("std", torch.ones(count, device="cpu"))
        self.normalize = False

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise each bin, or feature, from now on.

        Args:
            mean, std: ``[F]``, finite; std above 0.

        Raises:
            RuntimeError: if an argument is not a tensor, or its shape or a value is invalid.
        """
        for name, value in (("mean", mean), ("std", std)):
            found = f"{name} is a {type(value).__name__}"
            checks.require(isinstance(value, Tensor), self._name, found, "a torch.Tensor")
            checks.shape(self._name, name, value, tuple(self.mean.shape), "[F]")
        mean, std = (value.detach().to("cpu", self.mean.dtype, copy=True) for value in (mean, std))
        checks.require(bool(mean.isfinite().all()), self._name, "mean has a value out of range", "finite")
        good = bool((std.isfinite() & (std > 0)).all())
        checks.require(good, self._name, "std has a value out of range", "finite and above 0")
        self._constants |= {"mean": mean, "std": std}
        with torch.no_grad():
            self.mean.copy_(mean)
            self.std.copy_(std)
        self.normalize = True

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.normalize, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.normalize = bool(state)


class PowerSpectrogram(Normalized):
    """Power spectrogram of a padded batch, time-major, with its window and statistics as buffers.

    P[t, k] = |Σ_n window[n] wave[t·hop + n] exp(−2πi k n / n_fft)|² by :func:`ser_fast.functional.power_spectrogram`,
    then log(max(P, floor)) with ``log``, then (· − mean) / std once statistics are set. The defaults are those of the
    BiGRU-MHA paper (Artificial Intelligence and Robotics Research 13(2), 2024): 16 kHz, 40 ms frames every 10 ms, DFT
    of 1600, 0 to 4 kHz; that the window is a Hamming window, and periodic as torch's default, is our reading.
    Equivalent to ``torch.stft(...).abs() ** 2``, cropped and transposed.

    Args:
        sample_rate: hertz.
        n_fft: size of the DFT in samples.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        f_min, f_max: hertz; the bins from f_min to f_max, both included, are kept.
        window_fn, wkwargs: make the window: ``window_fn(win_length, **wkwargs)``. Windows are periodic by torch's
            default; ``wkwargs={"periodic": False}`` makes them symmetric.
        center: centre frame t on sample t·hop, by padding each row at its own ends.
        pad_mode: mode of the padding: "reflect", "constant", "replicate" or "circular".
        log: natural logarithm of the power.
        mean, std: normalisation of each bin ``[F]``; :meth:`set_statistics` sets it later.
        floor: smallest power before the logarithm.

    Shape:
        wave ``[B, N]``, lengths ``[B]`` in samples; spectrogram ``[B, T, F]``, lengths ``[B]`` in frames.

    Raises:
        TypeError: if n_fft, win_length or hop_length is not an int.
        ValueError: if an argument is out of range, no bin lies in f_min..f_max, or only one of mean and std is given.

    Example:
        >>> import torch
        >>> spectrogram = PowerSpectrogram()
        >>> spectrogram(torch.randn(2, 16000)).shape
        torch.Size([2, 97, 401])
        >>> frames, lengths = spectrogram(torch.randn(2, 16000), torch.tensor([16000, 8000]))
        >>> lengths
        tensor([97, 47])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1600,
        *,
        win_length: int = 640,
        hop_length: int = 160,
        f_min: float = 0.0,
        f_max: float = 4000.0,
        window_fn: Callable[..., Tensor] = torch.hamming_window,
        wkwargs: dict | None = None,
        center: bool = False,
        pad_mode: str = "reflect",
        log: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        floor: float = FLOOR,
    ):
        super().__init__()
        self._check_options(sample_rate, n_fft, win_length, hop_length, f_min, f_max, pad_mode, log, floor)
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.center = center
        self.pad_mode = pad_mode
        self.log = log
        self.floor = floor
        # A bin is kept if its frequency lies in the range, up to the division's rounding.
        first = math.ceil(f_min * n_fft / sample_rate - 1e-6)
        self.bins = (first, math.floor(f_max * n_fft / sample_rate + 1e-6) + 1)
        if self.bins[0] >= self.bins[1]:
            apart = f"bins are {sample_rate / n_fft} Hz apart"
            raise ValueError(f"{self._name}: no bin lies in {f_min}..{f_max} Hz; {apart}")
        with torch.device("cpu"):
            window = window_fn(win_length, **(wkwargs or {}))
        found, shape = f"{self._name}: window_fn gave shape {list(window.shape)}", (win_length,)
        require(window.shape == shape, found, f"[win_length] = [{win_length}]")
        self.register_constant("window", window)
        count = self.bins[1] - self.bins[0]
        self.register_statistics(count)
        if (mean is None) != (std is None):
            raise ValueError(f"{self._name}: only one of mean and std is given; give both or neither")
        if mean is not None:
            self.set_statistics(mean, std)

    def _check_options(self, sample_rate, n_fft, win_length, hop_length, f_min, f_max, pad_mode, log, floor) -> None:
        name, float32 = self._name, torch.finfo(torch.float32)
        require(sample_rate >= 1, f"{name}: sample_rate is {sample_rate}", "at least 1")
        checks.sizes(name, n_fft=n_fft, win_length=win_length, hop_length=hop_length)
        require(win_length <= n_fft, f"{name}: win_length is {win_length}", f"in 1..n_fft = {n_fft}")
        if not 0 <= f_min <= f_max <= sample_rate / 2:
            allowed = f"in order within 0..{sample_rate / 2}"
            raise ValueError(f"{name}: f_min, f_max are {f_min}, {f_max}; they must be {allowed}")
        require(pad_mode in PAD_MODES, f"{name}: pad_mode is '{pad_mode}'", f"one of {', '.join(PAD_MODES)}")
        good = not log or float32.tiny <= floor <= float32.max
        require(good, f"{name}: floor is {floor!r}", f"finite and at least {float32.tiny:.3g}, for a logarithm")

    def extra_repr(self) -> str:
        low, high = (k * self.sample_rate / self.n_fft for k in (self.bins[0], self.bins[1] - 1))
        return (
            f"{self.sample_rate} Hz, n_fft={self.n_fft}, win_length={self.win_length}, hop_length={self.hop_length}, "
            f"{low:g}-{high:g} Hz, center={self.center}, log={self.log}, normalize={self.normalize}"
        )

    @property
    def input_rate(self) -> float:
        """Values of the input in a second, along its time axis: samples."""
        return self.sample_rate

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return the frames of rows of these many samples, ``[B]`` each."""
        return frame_counts(lengths, self.n_fft, self.win_length, self.hop_length, self.center)

    def forward(self, wave: Tensor, lengths: Tensor | None = None):
        """Compute the spectrogram.

        Args:
            wave: ``[B, N]``, float32, float64, or int16, which stands for sample / 32768.
            lengths: samples of each row, int64 or int32 ``[B]``, on the wave's device.

        Returns:
            The spectrogram ``[B, T, F]``, 0 past each row's frames; with lengths ``(spectrogram, frame_lengths)``.
            It is computed in float64 if the wave or the module is, else in float32.

        Raises:
            RuntimeError: if an argument has an invalid shape, dtype, device or value, or a sample is not finite.
        """
        wave, lengths = recordable(wave, lengths)
        if isinstance(wave, Tensor) and self.window.dtype == torch.float64:
            scale = 32768 if wave.dtype == torch.int16 else 1
            wave = wave.double() / scale if wave.dtype in (torch.int16, torch.float32) else wave
        spec = self._spectra(wave, lengths, self.center)
        return spec if lengths is None else (spec, self.frame_lengths(lengths))

    def _spectra(self, wave: Tensor, lengths: Tensor | None, center: bool) -> Tensor:
        window, mean, std = self._for(wave, self.window, self.mean, self.std)
        mean, std = (mean, std) if self.normalize else (None, None)
        return power_spectrogram(
            wave, window, self.n_fft, self.hop_length, self.bins, lengths, mean, std,
            log=self.log, floor=self.floor, center=center, pad_mode=self.pad_mode,
        )  # fmt: skip

    def _for(self, wave: Tensor, *constants: Tensor) -> list[Tensor]:
        """Return constants in the dtype that a wave is computed in."""
        double = isinstance(wave, Tensor) and wave.dtype == torch.float64
        return [constant.double() if double else constant for constant in constants]

    def stream(self) -> SpectrogramStream:
        """Return a stream that takes a wave in chunks and gives each frame as soon as it is complete."""
        return SpectrogramStream(self)


class SpectrogramStream:
    """Spectrogram of rows that arrive in chunks; made by ``spectrogram.stream()``.

    The frames of all chunks and of :meth:`finish`, concatenated, equal those of the whole wave: bit for bit with the
    compiled CPU kernels, up to rounding with torch's FFT or the mel filters' product, whose order of addition depends
    on the number of frames. At most a window or its padding of samples is kept from call to call, however long the
    wave; the autograd graph is kept too if chunks require a gradient.

    With ``center`` and ``pad_mode="reflect"`` no frame comes before n_fft // 2 + 1 samples, since a shorter wave is
    an error. All rows have the same number of samples.

    A stream and a GRU of one direction, which carries its state, run a model during the recording. A bidirectional
    GRU cannot: its second direction begins at the end, and every output depends on it.

    Args:
        spectrogram: a :class:`ser_fast.PowerSpectrogram` or :class:`ser_fast.MelSpectrogram`.

    Shape:
        chunk ``[B, n]``; frames ``[B, t, F]``, with ``n_mels`` in place of F for mels.

    Raises:
        ValueError: if the padding is circular: it begins with the wave's end.

    Example:
        >>> import torch, ser_fast
        >>> gru = ser_fast.GRU(80, 128, batch_first=True)
        >>> stream, state = ser_fast.MelSpectrogram().stream(), None
        >>> for chunk in torch.randn(1, 16000).split(1000, dim=1):  # [B, n], any n
        ...     frames = stream(chunk)  # [B, t, 80]: all frames that became complete
        ...     if frames.shape[1]:
        ...         y, state = gru(frames, state)
        >>> y, state = gru(stream.finish(), state)
        >>> state.shape
        torch.Size([1, 1, 128])
    """

    def __init__(self, spectrogram: PowerSpectrogram):
        n_fft, width = spectrogram.n_fft, spectrogram.win_length
        good = not spectrogram.center or spectrogram.pad_mode != "circular"
        found = "SpectrogramStream: pad_mode is 'circular', which begins with the wave's end"
        require(good, found, "'reflect', 'constant' or 'replicate'")
        self.spectrogram = spectrogram
        # The parts of torch.stft's padding that reach windows centred in n_fft.
        self._left = n_fft // 2 - (n_fft - width) // 2 if spectrogram.center else 0
        self._right = width - n_fft % 2 - self._left if spectrogram.center else 0
        # The spectrogram itself handles fewer samples: an error, or a frame filled up with zeros.
        reflected = n_fft // 2 + 1 if spectrogram.pad_mode == "reflect" else 1
        self._least = reflected if spectrogram.center else width
        self._begin()

    def _begin(self) -> None:
        self._kind = None  # batch size, dtype and device of this utterance's chunks
        self._held = None  # [B, n], the last samples
        self._padded = False  # whether the left padding has been added
        self._skip = 0  # samples, held or still to come, before the next frame

    def __call__(self, chunk: Tensor) -> Tensor:
        """Return all frames ``[B, t, F]``, t ≥ 0, that are complete with the samples ``chunk`` ``[B, n]``, n ≥ 0.

        Raises:
            RuntimeError: if the chunk has an invalid shape, dtype, device or value; the stream's state is unchanged
                then.
        """
        kind = self._check(chunk)
        samples = chunk.to(torch.promote_types(chunk.dtype, self.spectrogram.window.dtype))
        samples = samples / 32768 if chunk.dtype == torch.int16 else samples
        held = samples if self._held is None else torch.cat([self._held, samples], 1)
        padded = self._padded or held.shape[1] >= self._least
        if padded and not self._padded:
            held = self._pad(held, self._left, 0)
        frames, used = self._complete(held, self._skip) if padded else (self._none(held), 0)
        # The last samples are kept for the padding on the right.
        dropped = max(0, min(used, held.shape[1] - self._right - 1))
        self._kind, self._held, self._padded, self._skip = kind, held[:, dropped:].clone(), padded, used - dropped
        return frames

    def finish(self) -> Tensor:
        """Return the last frames ``[B, t, F]``, t ≥ 0; the next chunk begins another utterance.

        These are the frames that reach into the padding on the right, or without ``center`` the one zero-padded frame
        of a wave shorter than a window.

        Raises:
            RuntimeError: if no chunk was given, or the wave is too short to be reflected.
        """
        op = "SpectrogramStream"
        checks.require(self._held is not None, op, "finish() is called before the first chunk", "called after one")
        held, padded, skip = self._held, self._padded, self._skip
        self._begin()
        if padded:
            return self._complete(self._pad(held, 0, self._right), skip)[0]
        return self.spectrogram(held) if held.shape[1] else self._none(held)

    def _pad(self, held: Tensor, left: int, right: int) -> Tensor:
        return F.pad(held, (left, right), mode=self.spectrogram.pad_mode) if self.spectrogram.center else held

    def _complete(self, held: Tensor, skip: int) -> tuple[Tensor, int]:
        """Return all frames of the held samples after the first ``skip``, and where the next frame begins."""
        width, hop = self.spectrogram.win_length, self.spectrogram.hop_length
        count = 1 + (held.shape[1] - skip - width) // hop
        if count <= 0:
            return self._none(held), skip
        end = skip + (count - 1) * hop + width
        return self.spectrogram._spectra(held[:, skip:end], None, center=False), skip + count * hop

    def _none(self, held: Tensor) -> Tensor:
        return held.new_empty(len(held), 0, len(self.spectrogram.mean))

    def _check(self, chunk: Tensor) -> dict:
        """Check a chunk and return what all chunks of an utterance must share."""
        op, window = "SpectrogramStream", self.spectrogram.window
        checks.tensors(op, chunk=chunk)
        good = chunk.dim() == 2 and len(chunk) > 0
        checks.require(good, op, f"chunk has shape {list(chunk.shape)}", "[B, n] with B at least 1")
        checks.require(chunk.device == window.device, op, f"chunk is on {chunk.device}", f"on {window.device}")
        checks.dtype(op, "chunk", chunk, torch.float32, torch.float64, torch.int16)
        kind = {"batch size": len(chunk), "dtype": chunk.dtype, "device": chunk.device}
        for name, value in kind.items():
            first = value if self._kind is None else self._kind[name]
            checks.require(
                value == first, op, f"chunk has {name} {value}", f"{first}, as in the utterance's first chunk"
            )
        if checks.readable(chunk) and not chunk.isfinite().all():
            row, sample = (~chunk.isfinite()).nonzero()[0].tolist()
            checks.require(False, op, f"chunk[{row}, {sample}] is {chunk[row, sample]}", "finite")
        return kind

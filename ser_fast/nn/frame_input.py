"""Features of frames that were computed elsewhere, as a model's input in a spectrogram's place."""

import torch
from torch import Tensor

from ser_fast._require import require
from ser_fast.nn.power_spectrogram import Normalized
from ser_fast.ops import checks
from ser_fast.ops.lengths import mask_past


class FrameInput(Normalized):
    """Take features of frames, such as those of a pretrained speech encoder, in place of a waveform.

    Each feature becomes (· − mean) / std once statistics are set. The attributes of a spectrogram describe the audio
    that the features were computed from.

    Args:
        width: features of a frame.
        sample_rate: sample rate of that audio, in hertz. Default: 16000.
        hop_length: samples of that audio from one frame to the next. Default: 320.

    Shape:
        frames ``[B, T, width]``, lengths ``[B]`` in frames; normalised frames of the same shape, 0 past each length.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> frames, lengths = FrameInput(768)(torch.randn(2, 50, 768), torch.tensor([50, 30]))
        >>> frames.shape, lengths
        (torch.Size([2, 50, 768]), tensor([50, 30]))
    """

    def __init__(self, width: int, sample_rate: int = 16000, hop_length: int = 320):
        super().__init__()
        for name, value in (("width", width), ("sample_rate", sample_rate), ("hop_length", hop_length)):
            require(value >= 1, f"{self._name}: {name} is {value!r}", "at least 1")
        self.sample_rate, self.hop_length = sample_rate, hop_length
        # Audio below a frame is too short; reports draw the lower half of its power spectrogram.
        self.win_length = self.n_fft = hop_length
        self.bins = (0, 1 + hop_length // 4)
        self.register_statistics(width)

    @property
    def input_rate(self) -> float:
        """Values of the input in a second, along its time axis: frames."""
        return self.sample_rate / self.hop_length

    def extra_repr(self) -> str:
        return f"{len(self.mean)} features, {self.input_rate:g} frames/s, normalize={self.normalize}"

    def forward(self, frames: Tensor, lengths: Tensor | None = None):
        """Normalise frames.

        Args:
            frames: ``[B, T, width]``, float32 or float64.
            lengths: frames of each row, int64 or int32 ``[B]``; by default T in every row.

        Returns:
            The frames, 0 past each length; with lengths ``(frames, lengths)``.

        Raises:
            RuntimeError: if an argument has an invalid shape, dtype, device or value.
        """
        width = len(self.mean)
        good = frames.dim() == 3 and frames.shape[2] == width
        checks.require(good, self._name, f"frames has shape {list(frames.shape)}", f"[B, T, {width}]")
        checks.dtype(self._name, "frames", frames, torch.float32, torch.float64)
        checks.lengths(self._name, lengths, frames, frames.shape[0], frames.shape[1])
        if self.normalize:
            frames = (frames - self.mean.to(frames.dtype)) / self.std.to(frames.dtype)
        frames = mask_past(frames, lengths)
        return frames if lengths is None else (frames, lengths)

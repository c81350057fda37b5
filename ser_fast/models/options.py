"""Checks of a model's constructor options, and the input that they choose."""

from ser_fast._require import require
from ser_fast.nn.frame_input import FrameInput
from ser_fast.nn.power_spectrogram import PowerSpectrogram


def check(model: str, num_classes: int, f_max: float, **dropouts: float) -> None:
    """Check the options that every model has.

    Raises:
        ValueError: if ``num_classes`` < 1, ``f_max`` <= 0 hertz, or a dropout is outside 0 <= p < 1.
    """
    require(num_classes >= 1, f"{model}: num_classes is {num_classes!r}", "at least 1")
    require(f_max > 0, f"{model}: f_max is {f_max!r}", "above 0 hertz")
    for name, value in dropouts.items():
        require(0 <= value < 1, f"{model}: {name} is {value!r}", "in 0..1, 1 excluded")


def check_heads(model: str, num_heads: int, width: int) -> None:
    """Check that ``num_heads`` divides the attention's width, ``2 * hidden_size``.

    Raises:
        ValueError: if it does not, or is below 1.
    """
    good = num_heads >= 1 and width % num_heads == 0
    require(good, f"{model}: num_heads is {num_heads!r}", f"a divisor of 2 * hidden_size = {width}")


def front_end(
    model: str, features: int, frame_rate: float, sample_rate: int, n_fft: int, **spectrogram
) -> PowerSpectrogram | FrameInput:
    """Return the module that makes frames of a model's input: of waveforms, or of features of frames.

    Args:
        model: name for error messages.
        features: features of a frame; 0 takes waveforms.
        frame_rate: frames of the features in a second.
        sample_rate: sample rate of the waveforms, or of those that the features were computed from, in hertz.
        n_fft, spectrogram: as in :class:`ser_fast.PowerSpectrogram`.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> front_end("BiGRUMHA", 768, 50.0, 16000, 1600)
        FrameInput(768 features, 50 frames/s, normalize=False)
    """
    require(features >= 0, f"{model}: features is {features!r}", "at least 0")
    if not features:
        return PowerSpectrogram(sample_rate, n_fft, **spectrogram)
    good = 1 <= frame_rate <= sample_rate
    require(good, f"{model}: frame_rate is {frame_rate!r}", f"in 1..{sample_rate}, the sample rate")
    return FrameInput(features, sample_rate, round(sample_rate / frame_rate))

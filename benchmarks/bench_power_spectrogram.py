"""Power spectrogram against the torch.stft chain and, if they are installed, torchaudio and other libraries.

The floor is 2.5 n log2 n real operations per frame, the usual count of a real FFT, at the rate of a large matrix
product. No FFT reaches this rate; on the other hand, the crop needs less than the whole transform.
"""

import math
from collections.abc import Callable

import engines
import pytest
import torch
from harness import check, peak_memory
from torch import Tensor

from ser_fast.functional import power_spectrogram

N_FFT, WINDOW, HOP, BINS = 1600, 640, 160, 401
SIZES = [(32, 3), (64, 10)]  # utterances, seconds
TOLERANCE = 1e-5


def chain(wave: Tensor, window: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Return the power spectrogram ``[B, T, BINS]`` by torch.stft: spectrum, power, crop, transpose, normalise."""
    spectrum = torch.stft(wave, N_FFT, HOP, WINDOW, window, center=True, return_complex=True)
    power = spectrum.abs().square()[:, :BINS].transpose(1, 2)
    return power if mean is None else (power - mean) / std


def torchaudio_chain(mean: Tensor | None, std: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """Return the same by torchaudio, or None if it is not installed."""
    try:
        from torchaudio.transforms import Spectrogram
    except ImportError:
        return None
    transform = Spectrogram(N_FFT, WINDOW, HOP, window_fn=torch.hamming_window)

    def call(wave: Tensor) -> Tensor:
        power = transform.to(wave.device)(wave)[:, :BINS].transpose(1, 2)
        return power if mean is None else (power - mean) / std

    return call


def error_against_float64(found: Tensor, arguments: tuple) -> float:
    """Return the largest error of 4 rows relative to the largest value; float64 of all may not fit in memory."""
    wave, *rest = (None if tensor is None else tensor.double() for tensor in arguments)
    exact = chain(wave[:4], *rest)
    return float((found[:4] - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("normalized", [False, True], ids=["power", "normalized"])
@pytest.mark.parametrize("batch,seconds", SIZES)
def bench_power_spectrogram(compare, batch, seconds, normalized):
    """Power spectrogram, 0 to 4 kHz of a DFT of 1600."""
    wave, window = torch.randn(batch, 16000 * seconds), torch.hamming_window(WINDOW)
    mean = std = None
    if normalized:
        plain = chain(wave, window, None, None)
        mean, std = plain.mean((0, 1)), plain.std((0, 1))
    arguments = wave, window, mean, std

    def ours() -> Tensor:
        return power_spectrogram(wave, window, N_FFT, HOP, (0, BINS), mean=mean, std=std, center=True)

    peers = {"torch.stft chain": lambda: chain(*arguments)}
    if (transform := torchaudio_chain(mean, std)) is not None:
        peers["torchaudio"] = lambda: transform(wave)
    case = f"{batch} × {seconds} s{', normalised' if normalized else ''}"
    found = ours()
    for name, call in peers.items():
        check(f"{case}, {name}", found, call(), TOLERANCE)
    extra = {}
    if not normalized:
        for name, engine in engines.spectrograms(wave, window, N_FFT, HOP, BINS).items():
            check(f"{case}, {name}", found, engine.read(engine.call()), TOLERANCE)
            peers[name] = engine.call
        extra["left out"] = engines.missing(list(engines.SPECTROGRAMS))
    errors = {"ours": found, "torch.stft chain": chain(*arguments)}
    errors = {name: error_against_float64(value, arguments) for name, value in errors.items()}
    frames, size = found.shape[1], found.nbytes
    del found
    memory = {"output": size, "ours": peak_memory(ours), "torch.stft chain": peak_memory(peers["torch.stft chain"])}
    work = batch * frames * 2.5 * N_FFT * math.log2(N_FFT)
    compare(
        case, ours, peers, operations=work, errors=errors, error=errors["ours"], tolerance=TOLERANCE, memory=memory,
        **extra,
    )  # fmt: skip

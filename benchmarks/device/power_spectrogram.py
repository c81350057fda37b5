"""Part `spectrogram`: power spectrogram against the torch.stft chain and torchaudio."""

from collections.abc import Callable
from functools import partial

import torch
from bench_power_spectrogram import BINS, HOP, N_FFT, WINDOW, chain, error_against_float64, torchaudio_chain
from harness import check

from device.bench import Bench, Case
from ser_fast.functional import power_spectrogram
from ser_fast.tuning.checks import allow

SIZES = [(64, 10), (32, 3)]  # utterances, seconds


def spectrogram(bench: Bench) -> list[Case]:
    """Time the power spectrogram, with and without normalisation; tf32 is allowed and must not change it."""
    sizes = [(2, 1)] if bench.rehearse else SIZES
    return [
        Case(f"{batch} x {seconds} s, {what}", partial(spectrogram_case, bench, batch, seconds, what == "normalised"))
        for what in ("normalised", "power")
        for batch, seconds in sizes
    ]


def spectrogram_case(bench: Bench, batch: int, seconds: int, normalised: bool) -> dict:
    """Time one batch; adds nanoseconds per frame."""
    allow("tf32")
    wave = torch.randn(batch, 16000 * seconds, device=bench.device)
    window = torch.hamming_window(WINDOW, device=bench.device)
    plain = chain(wave, window, None, None)
    mean, std = (plain.mean((0, 1)), plain.std((0, 1))) if normalised else (None, None)
    calls = bench.ours(
        lambda: power_spectrogram(wave, window, N_FFT, HOP, (0, BINS), mean=mean, std=std, center=True)
    ) | {"torch.stft chain": lambda: chain(wave, window, mean, std)}
    if (transform := torchaudio_chain(mean, std)) is not None:
        calls["torchaudio"] = lambda: transform(wave)
    wanted = chain(wave, window, mean, std)

    def matches(call: Callable) -> float:
        found = call()
        check("all", found, wanted, 1e-5)
        return error_against_float64(found, (wave, window, mean, std))

    checks = {name: partial(matches, call) for name, call in calls.items()}
    found = bench.compare(calls, checks, op="power_spectrogram", precision="float32", tolerance=1e-5)
    frames = batch * plain.shape[1]
    return found | {"ns a frame": {name: 1e9 * value / frames for name, value in found["seconds"].items()}}

"""power_spectrogram against torch.stft, its `out=`, and what lies past a wave's length."""

import random

import pytest
import torch
from samples import assert_as_accurate

from ser_fast.ops.power_spectrogram import PAD_MODES, _reference_out, power_spectrogram


def stft_power(wave, window, n_fft, hop_length, center, pad_mode):
    """|torch.stft|², time-major. Without centring its align_to_window gives our frames."""
    options = {"pad_mode": pad_mode} if center else {"align_to_window": True}
    spectrum = torch.stft(wave, n_fft, hop_length, len(window), window, center=center, return_complex=True, **options)
    return spectrum.abs().square().transpose(1, 2)


def has_align_to_window() -> bool:
    return "align_to_window" in (torch.stft.__doc__ or "") or "align_to_window" in torch.stft.__code__.co_varnames


@pytest.mark.parametrize("seed", range(40))
def test_power_spectrogram_equals_torch_stft(seed):
    """float64 to 1e-12 of the peak; float32 errs from float64 no more than twice torch.stft's power does."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    n_fft = draw.choice([1, 2, 8, 12, 49, 75, 128, 210, 400, 512, 1600, 2 * 67])
    # torch 2.13 itself reads out of bounds in align_to_window where n_fft - win_length is odd.
    width = n_fft - 2 * draw.randint(0, (n_fft - 1) // 2)
    hop = draw.randint(1, width)
    center = draw.random() < 0.5 or not has_align_to_window()
    pad_mode = draw.choice(PAD_MODES)
    window = draw.choice([torch.hann_window, torch.hamming_window])(
        width, periodic=draw.random() < 0.5, dtype=torch.float64
    )
    wave = torch.randn(draw.randint(1, 3), draw.randint(n_fft + 1, 4 * n_fft + 50), dtype=torch.float64)
    truth = stft_power(wave, window, n_fft, hop, center, pad_mode)
    found = power_spectrogram(wave, window, n_fft, hop, center=center, pad_mode=pad_mode)
    assert found.shape == truth.shape
    assert float((found - truth).abs().max()) <= 1e-12 * float(truth.max())
    single, window32 = wave.float(), window.float()
    truth = stft_power(single.double(), window32.double(), n_fft, hop, center, pad_mode)
    peer = stft_power(single, window32, n_fft, hop, center, pad_mode)
    assert_as_accurate(power_spectrogram(single, window32, n_fft, hop, center=center, pad_mode=pad_mode), peer, truth)


def test_power_spectrogram_obeys_parseval():
    """The power of all bins is the windowed frame's energy times n_fft."""
    wave, window = torch.randn(1, 64, dtype=torch.float64), torch.rand(64, dtype=torch.float64)
    power = power_spectrogram(wave, window, 80, 64)[0, 0]
    both_sides = 2 * power.sum() - power[0] - power[-1]
    assert torch.isclose(both_sides, 80 * (wave[0] * window).square().sum(), rtol=1e-12)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_power_spectrogram_checks_and_writes_out(backend):
    wave, window = torch.randn(2, 4000), torch.hamming_window(400)
    wanted = power_spectrogram(wave, window, 512, 160, (0, 100))
    args = (wave, window, 512, 160, 0, 100, None, None, None, False, 1e-10, False, "reflect")
    run = torch.ops.ser_fast.power_spectrogram_out if backend == "compiled" else _reference_out
    out = torch.full_like(wanted, torch.nan)
    run(*args, out)
    assert torch.allclose(out, wanted, rtol=1e-4)
    if backend == "compiled":
        assert power_spectrogram(wave, window, 512, 160, (0, 100), out=out) is out and torch.equal(out, wanted)
        torch.library.opcheck(run, (*args, out))
    for bad, sentence in (
        (out[:, 1:], r"out has shape \[2, 22, 100\]; it must be \[B, T, F\] = \[2, 23, 100\]"),
        (out.double(), "out has dtype float64; it must be float32"),
        (torch.zeros(2, 23, 200)[..., ::2], "out is strided; it must be contiguous"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            run(*args, bad)
    with pytest.raises(RuntimeError, match="out does not support autograd; omit it or use"):
        power_spectrogram(wave.requires_grad_(), window, 512, 160, (0, 100), out=out)


def test_power_spectrogram_refuses_gradients_of_constants():
    with pytest.raises(RuntimeError, match="window requires a gradient; it must be a constant"):
        power_spectrogram(torch.randn(1, 20), torch.ones(5, requires_grad=True), 8, 2)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("center", [False, True])
def test_power_spectrogram_never_reads_padding(center, pad_mode):
    lengths = torch.tensor([60, 30])
    wave = torch.randn(2, 60, dtype=torch.float64)
    noisy = wave.masked_fill(torch.arange(60) >= lengths[:, None], float("nan"))
    results = []
    for given in (wave, noisy):
        given = given.requires_grad_()
        spec = power_spectrogram(given, torch.ones(8).double(), 8, 4, lengths=lengths, center=center,
                                                   pad_mode=pad_mode)  # fmt: skip
        results.append((spec, torch.autograd.grad(spec.sum(), given)[0]))
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_logarithm_of_nan_is_nan():
    window = torch.ones(16, dtype=torch.float64)
    window[3] = torch.nan
    wave = torch.randn(2, 64, dtype=torch.float64)
    assert power_spectrogram(wave, window, 16, 8, log=True).isnan().all()

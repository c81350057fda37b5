"""Mel filters against librosa's and torchaudio's."""

import warnings

import pytest
import torch
from selection import important

import ser_fast
from ser_fast.functional import mel_filters

np = pytest.importorskip("numpy")
librosa = pytest.importorskip("librosa")

KINDS = [(scale, norm) for scale in ("htk", "slaney") for norm in (None, "slaney")]
# n_mels, n_fft, sample_rate, f_min, f_max
BANKS = [
    (80, 512, 16000, 0.0, None),
    (128, 2048, 22050, 0.0, None),
    (40, 400, 16000, 20.0, 7600.0),
    (23, 257, 8000, 64.0, 3800.0),
    (64, 1600, 16000, 300.5, 4000.0),
    (1, 31, 11025, 0.0, 5512.5),
    (13, 1025, 44100, 1000.0, 22050.0),
]


def theirs(n_mels, n_fft, sample_rate, f_min, f_max, mel_scale, norm) -> torch.Tensor:
    options = {"htk": mel_scale == "htk", "norm": norm, "dtype": np.float64}
    made = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max, **options)
    return torch.from_numpy(made).T


def narrowest(n_mels, sample_rate, f_min, f_max, mel_scale) -> float:
    """The smallest distance between two corners, in hertz."""
    corners = librosa.mel_frequencies(n_mels + 2, fmin=f_min, fmax=f_max or sample_rate / 2, htk=mel_scale == "htk")
    return float(np.diff(corners).min())


@pytest.mark.parametrize(("mel_scale", "norm"), KINDS)
@pytest.mark.parametrize("bank", important(BANKS, 2))
def test_mel_filters_equal_librosa(bank, mel_scale, norm):
    """A weight is a difference of frequencies over one of corners: it errs by some roundings of half the rate over it."""
    n_mels, n_fft, sample_rate, f_min, f_max = bank
    found = mel_filters(*bank, mel_scale=mel_scale, norm=norm, dtype=torch.float64)
    truth = theirs(*bank, mel_scale, norm)
    assert found.shape == truth.shape == (n_fft // 2 + 1, n_mels)
    rounding = 2**-53 * sample_rate / 2 / narrowest(n_mels, sample_rate, f_min, f_max, mel_scale)
    assert float((found - truth).abs().max()) <= 16 * rounding * float(truth.max())
    single = mel_filters(*bank, mel_scale=mel_scale, norm=norm)
    assert single.dtype == torch.float32 and torch.equal(single, found.float())


@pytest.mark.parametrize(("mel_scale", "norm"), KINDS)
@pytest.mark.parametrize("bank", [BANKS[0], BANKS[2], BANKS[4]])
def test_mel_filters_equal_torchaudio(bank, mel_scale, norm):
    """Torchaudio computes its filters in float32, so the tolerance is that of float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchaudio.functional import melscale_fbanks
        except (ImportError, OSError) as error:  # built for CUDA beside a torch for CPU, it does not load
            pytest.skip(f"torchaudio does not import: {error}")
    n_mels, n_fft, sample_rate, f_min, f_max = bank
    peer = melscale_fbanks(n_fft // 2 + 1, f_min, f_max or sample_rate / 2, n_mels, sample_rate, norm, mel_scale)
    found = mel_filters(*bank, mel_scale=mel_scale, norm=norm)
    rounding = 2**-24 * sample_rate / 2 / narrowest(n_mels, sample_rate, f_min, f_max, mel_scale)
    assert float((found - peer).abs().max()) <= 16 * rounding * float(peer.max())


@pytest.mark.parametrize("make", [lambda: mel_filters(128, 512, 16000), lambda: ser_fast.MelSpectrogram(n_mels=128)])
def test_mel_filters_without_a_bin_warn_once(make):
    with pytest.warns(UserWarning) as caught:
        make()
    empty = int((mel_counts(128, 512) == 0).sum())
    assert empty > 0 and len(caught) == 1
    assert str(caught[0].message).startswith(f"mel_filters: n_mels is 128, and {empty} of the filters contain no bin")


def mel_counts(n_mels: int, n_fft: int) -> np.ndarray:
    """How many bins lie strictly within each filter, at 16 kHz."""
    corners = librosa.mel_frequencies(n_mels + 2, fmin=0, fmax=8000, htk=True)
    bins = np.arange(n_fft // 2 + 1) * 16000 / n_fft
    return np.array([((bins > low) & (bins < high)).sum() for low, high in zip(corners[:-2], corners[2:])])

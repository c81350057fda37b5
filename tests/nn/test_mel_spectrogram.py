"""MelSpectrogram against librosa, and what casts, autocast and ragged rows leave unchanged."""

import copy
import math
import os
import random
from functools import partial
from pathlib import Path

import pytest
import torch

import ser_fast
from ser_fast.data.audio import read_audio
from ser_fast.data.corpora.synthetic import synthesize
from ser_fast.functional import mel_filters

np = pytest.importorskip("numpy")
librosa = pytest.importorskip("librosa")

DATA = Path(os.environ.get("SER_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")
EMODB = DATA / "emodb" / "wav"


def voice(name: str) -> np.ndarray:
    """Samples at 16 kHz, float32."""
    if name == "noise":
        return np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    if name == "synthetic":
        return synthesize("happiness", 1, 2).numpy()
    if not EMODB.is_dir():
        pytest.skip(f"Emo-DB is not in {DATA}")
    return read_audio(EMODB / "03a01Fa.wav").numpy()


def librosas(wave: np.ndarray, module: ser_fast.MelSpectrogram, f_min: float, f_max: float | None) -> torch.Tensor:
    """librosa's mels [T, M] without logarithm, in the wave's dtype."""
    pad_mode = {"replicate": "edge"}.get(module.pad_mode, module.pad_mode)
    mel = librosa.feature.melspectrogram(
        y=wave, sr=module.sample_rate, n_fft=module.n_fft, win_length=module.win_length, center=module.center,
        hop_length=module.hop_length, pad_mode=pad_mode, n_mels=module.n_mels, fmin=f_min, fmax=f_max,
        htk=module.mel_scale == "htk", norm=module.norm, dtype=wave.dtype,
    )  # fmt: skip
    return torch.from_numpy(mel).T


CASES = [
    {},
    {"norm": "slaney", "mel_scale": "slaney", "n_fft": 1024, "win_length": 1024, "hop_length": 256, "n_mels": 128},
    {"n_fft": 400, "f_min": 50.0, "f_max": 7600.0, "n_mels": 40, "pad_mode": "constant"},
    {"n_fft": 401, "win_length": 401, "n_mels": 32, "center": False, "mel_scale": "slaney"},
    {"win_length": 333, "n_mels": 23, "pad_mode": "replicate", "norm": "slaney"},
]


@pytest.mark.parametrize("name", ["noise", "synthetic", "emodb"])
@pytest.mark.parametrize("options", CASES)
def test_log_mels_equal_librosa(options, name):
    """Within what float32 may do to them, band by band, near silence too.

    An FFT of n points errs in each bin by about d = 2^-24 log2(n) |frame|, the window by as much again, hence a mel
    Σ W |X|² by Σ W (2 |X| d + d²) and by the sum's rounding, at most F 2^-24 of itself; |frame| is at most the
    loudest one's.
    """
    wave = voice(name)
    module = ser_fast.MelSpectrogram(**options)
    found = module(torch.from_numpy(wave)[None])[0].double()
    band = options.get("f_min", 0.0), options.get("f_max")
    truth = librosas(wave.astype(np.float64), module, *band)
    assert found.shape == truth.shape
    filters, eps = module.filters.double(), 2**-24
    plain = ser_fast.PowerSpectrogram(
        16000, module.n_fft, win_length=module.win_length, hop_length=module.hop_length, f_max=8000,
        window_fn=partial(torch.hann_window, dtype=torch.float64), center=module.center, pad_mode=module.pad_mode,
    )  # fmt: skip
    power = plain(torch.from_numpy(wave).double()[None])[0]
    frame = (2 * power.sum(1, keepdim=True) / module.n_fft).sqrt()  # by Parseval, of the windowed frame
    d = 2 * eps * math.log2(module.n_fft) * frame.clamp(min=eps)
    error = 2 * d * (power[:, slice(*module.bins)].sqrt() @ filters) + d.square() * filters.sum(0)
    error = error + len(filters) * eps * truth
    low, high = ((truth + sign * error).clamp(min=module.floor).log() for sign in (-1, 1))
    rounding = 4 * eps * truth.clamp(min=module.floor).log().abs() + eps
    assert bool((found >= low - rounding).all()) and bool((found <= high + rounding).all())
    assert float((high - low).median()) < 1e-3, "the bound says nothing"


@pytest.mark.parametrize("options", CASES)
def test_mels_equal_librosa_in_float64(options):
    """To 1e-12 of the largest: sums of some hundred products."""
    wave = voice("noise").astype(np.float64)
    double = partial(torch.hann_window, dtype=torch.float64)
    module = ser_fast.MelSpectrogram(**options, log=False, window_fn=double)
    truth = librosas(wave, module, options.get("f_min", 0.0), options.get("f_max"))
    found = module(torch.from_numpy(wave)[None])[0]
    assert found.dtype == torch.float64 and float((found - truth).abs().max()) <= 1e-12 * float(truth.max())


@pytest.mark.parametrize("seed", range(20))
def test_mel_spectrogram_computes_needed_bins_alone(seed):
    draw = random.Random(seed)
    sample_rate, n_fft = draw.choice([8000, 11025, 16000, 44100]), draw.randint(300, 2000)
    f_min = draw.uniform(0, 1000)
    f_max = draw.uniform(f_min + 1000, sample_rate / 2)
    bank = (draw.randint(1, 12), n_fft, sample_rate, f_min, f_max)
    module = ser_fast.MelSpectrogram(
        sample_rate, n_fft, win_length=n_fft, hop_length=100, f_min=f_min, f_max=f_max, n_mels=bank[0]
    )
    whole = mel_filters(*bank)
    begin, end = module.bins
    assert torch.equal(module.filters, whole[begin:end])
    assert not whole[:begin].any() and not whole[end:].any()
    assert module.filters[0].any() and module.filters[-1].any()


@pytest.mark.parametrize("center", [False, True])
def test_mel_spectrogram_of_padded_batch_equals_rows(center):
    """The product's order of addition may depend on the number of frames, so results may differ by 257 roundings."""
    module = ser_fast.MelSpectrogram(center=center).double()
    module.set_statistics(torch.randn(80), torch.rand(80) + 0.5)
    lengths = torch.tensor([5000, 3000, 0, 700])
    wave = torch.randn(4, 5000, dtype=torch.float64)
    mel, frames = module(wave, lengths)
    assert frames.tolist() == module.frame_lengths(lengths).tolist() and frames[2] == 0
    for row, length in enumerate(lengths.tolist()):
        assert not mel[row, frames[row] :].any()
        if length:
            alone = module(wave[row : row + 1, :length])[0]
            assert len(alone) == frames[row]
            assert torch.allclose(mel[row, : len(alone)], alone, rtol=1e-12, atol=1e-12)


def test_mel_spectrogram_of_int16_equals_float():
    whole = torch.randint(-(2**15), 2**15, (2, 3000), dtype=torch.int16)
    for module in (ser_fast.MelSpectrogram(), ser_fast.MelSpectrogram().double()):
        assert torch.equal(module(whole), module(whole.to(module.window.dtype) / 32768))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mel_spectrogram_stays_float32_in_half_precision(dtype):
    wave = 64 * torch.sin(torch.arange(4000) * 0.3)[None]
    module = ser_fast.MelSpectrogram(log=False)
    wanted = module(wave)
    assert float(wanted.max()) > torch.finfo(torch.float16).max
    half = copy.deepcopy(module).to(dtype)
    assert half.filters.dtype == torch.float32 and torch.equal(half(wave), wanted)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(module(wave), wanted) and torch.equal(half(wave), wanted)


def test_mel_spectrogram_gradient_reaches_the_wave():
    module = ser_fast.MelSpectrogram(100, 20, win_length=16, hop_length=8, n_mels=4).double()
    wave = torch.randn(2, 60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda wave: module(wave, torch.tensor([60, 31]))[0], wave)


def test_mel_spectrogram_of_silence_is_the_floor():
    assert torch.allclose(ser_fast.MelSpectrogram(floor=1e-6)(torch.zeros(1, 2000)), torch.tensor(math.log(1e-6)))


def test_mel_statistics_are_in_the_state_dict():
    module, wave = ser_fast.MelSpectrogram(n_mels=20), torch.randn(2, 8000)
    mel = module(wave)
    module.set_statistics(mel.mean((0, 1)), mel.std((0, 1)))
    normalized = module(wave)
    assert abs(float(normalized.mean())) < 1e-4 and abs(float(normalized.std()) - 1) < 1e-2
    with torch.device("meta"):
        other = ser_fast.MelSpectrogram(n_mels=20)
        assert other(torch.empty(2, 8000)).shape == mel.shape
    other.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(other(wave), normalized)


def test_mel_spectrogram_compiles_without_a_graph_break():
    module, wave, lengths = ser_fast.MelSpectrogram(n_mels=20), torch.randn(2, 3000), torch.tensor([3000, 2000])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(wave, lengths), module(wave, lengths)):
        assert torch.equal(one, other)


def test_mel_spectrogram_repr_shows_options():
    shown = str(ser_fast.MelSpectrogram(n_mels=40, mel_scale="slaney"))
    assert "n_fft=512" in shown and "n_mels=40" in shown and "mel_scale=slaney" in shown and "norm=None" in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_mels": 0}, "mel_filters: n_mels is 0; it must be at least 1"),
        ({"n_fft": 0}, "mel_filters: n_fft is 0; it must be at least 1"),
        ({"sample_rate": 0}, "mel_filters: sample_rate is 0; it must be at least 1"),
        ({"f_max": 9000.0}, r"f_min, f_max is \(0.0, 9000.0\); it must be in order within 0..8000.0, and differ"),
        ({"f_min": 500.0, "f_max": 500.0}, r"f_min, f_max is \(500.0, 500.0\)"),
        ({"f_min": -1.0}, r"f_min, f_max is \(-1.0, 8000.0\)"),
        ({"f_min": 40.0, "f_max": 50.0}, "no bin lies between f_min = 40.0 and f_max = 50.0 Hz; bins are 31.25 Hz apart"),
        ({"mel_scale": "bark"}, "mel_scale is 'bark'; it must be 'htk' or 'slaney'"),
        ({"norm": 2}, "norm is 2; it must be None or 'slaney'"),
        ({"floor": 0.0}, "MelSpectrogram: floor is 0.0; it must be finite and at least 1.18e-38, for a logarithm"),
        ({"win_length": 513}, "win_length is 513; it must be in 1..n_fft = 512"),
        ({"pad_mode": "same"}, "pad_mode is 'same'; it must be one of reflect"),
    ],
)  # fmt: skip
def test_mel_spectrogram_refuses_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ser_fast.MelSpectrogram(**options)

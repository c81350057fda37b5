"""PowerSpectrogram: its defaults, short and ragged waves, integer samples, statistics and options."""

import copy
import math
import warnings

import pytest
import torch

import ser_fast


def test_power_spectrogram_defaults_are_the_papers():
    front = ser_fast.PowerSpectrogram()
    spec = front(torch.randn(2, 16000))
    assert spec.shape == (2, 1 + (16000 - 640) // 160, 401)  # 10 Hz apart, 0 to 4000 Hz
    tone = torch.sin(2 * math.pi * 1230 * torch.arange(16000) / 16000)[None]
    assert front(tone)[0].argmax(-1).unique().tolist() == [123]


@pytest.mark.parametrize("center", [False, True])
def test_power_spectrogram_of_padded_batch_equals_rows(center):
    front = ser_fast.PowerSpectrogram(center=center, log=True).double()
    lengths = torch.tensor([9000, 3000, 900, 5001])
    wave = torch.randn(4, 9000, dtype=torch.float64)
    spec, frames = front(wave, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = front(wave[row : row + 1, :length])[0]
        assert len(alone) == frames[row]
        assert torch.equal(spec[row, : len(alone)], alone) and not spec[row, len(alone) :].any()


def test_power_spectrogram_of_short_and_empty_waves():
    front = ser_fast.PowerSpectrogram()
    wave = torch.randn(3, 400)
    spec, frames = front(wave, torch.tensor([400, 1, 0]))
    assert frames.tolist() == [1, 1, 0] and spec.shape == (3, 1, 401)
    padded = torch.nn.functional.pad(wave[:1], (0, 240))
    assert torch.allclose(spec[:1], front(padded), rtol=1e-5, atol=1e-4)
    assert not spec[2].any()


def test_power_spectrogram_of_int16_equals_float():
    whole = torch.randint(-(2**15), 2**15, (2, 3000), dtype=torch.int16)
    front = ser_fast.PowerSpectrogram(log=True)
    assert torch.equal(front(whole), front(whole.float() / 32768))


def test_power_spectrogram_takes_both_window_kinds():
    wave = torch.randn(1, 4000)
    periodic, symmetric = ser_fast.PowerSpectrogram(), ser_fast.PowerSpectrogram(wkwargs={"periodic": False})
    assert not torch.allclose(periodic(wave), symmetric(wave), rtol=1e-3)


def test_power_statistics_are_in_the_state_dict():
    front = ser_fast.PowerSpectrogram(log=True)
    wave = torch.randn(2, 8000)
    spec = front(wave)
    front.set_statistics(spec.mean((0, 1)), spec.std((0, 1)))
    normalized = front(wave)
    assert abs(float(normalized.mean())) < 1e-4 and abs(float(normalized.std()) - 1) < 1e-2
    other = ser_fast.PowerSpectrogram(log=True)
    other.load_state_dict(front.state_dict())
    assert torch.equal(other(wave), normalized)
    wanted = ser_fast.PowerSpectrogram(log=True, mean=front.mean, std=front.std)
    assert torch.equal(wanted(wave), normalized)


def test_power_spectrogram_stays_float32_in_half_models():
    wave = torch.randn(2, 4000)
    front = ser_fast.PowerSpectrogram(log=True)
    spec = front(wave)
    front.set_statistics(spec.mean((0, 1)), spec.std((0, 1)))
    wanted = front(wave)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(front.to(dtype)(wave), wanted)
    for model in (ser_fast.CGRU(3), ser_fast.BiGRUMHA(3)):
        logits = model.eval()(wave)
        half = model.bfloat16()(wave)
        assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), logits, atol=0.05)


def test_set_statistics_refuses_without_a_change():
    front = ser_fast.PowerSpectrogram()
    with pytest.raises(RuntimeError, match="std has a value out of range"):
        front.set_statistics(torch.full((401,), 7.0), torch.full((401,), 1e-60, dtype=torch.float64))
    assert not front.mean.any() and not front.normalize
    front.set_statistics(torch.zeros(401, requires_grad=True), torch.ones(401))
    front(torch.randn(1, 1000))


def test_model_built_on_meta_loads_its_weights():
    model = ser_fast.BiGRUMHA(3).eval()
    with torch.device("meta"):
        empty = ser_fast.BiGRUMHA(3).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    wave = torch.randn(1, 3000)
    assert torch.equal(empty(wave), model(wave))


def test_power_spectrogram_of_int16_in_float64():
    whole = torch.randint(-(2**15), 2**15, (2, 3000), dtype=torch.int16)
    front = ser_fast.PowerSpectrogram().double()
    assert torch.equal(front(whole), front(whole.double() / 32768))


def test_power_spectrogram_gradient_reaches_the_wave():
    front = ser_fast.PowerSpectrogram(100, 20, win_length=16, hop_length=8, f_max=50, log=True).double()
    wave = torch.randn(2, 60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda wave: front(wave, torch.tensor([60, 31]))[0], wave)


def test_power_spectrogram_of_silence_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = ser_fast.PowerSpectrogram(log=True)(torch.zeros(1, 2000))
    assert torch.allclose(spec, torch.tensor(math.log(1e-10)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"win_length": 1700}, "win_length is 1700; it must be in 1..n_fft = 1600"),
        ({"hop_length": 0}, "PowerSpectrogram: hop_length must be greater than zero, got: 0"),
        ({"n_fft": 1600.0}, r"PowerSpectrogram: n_fft should be of type int, got: float \(1600.0\)"),
        ({"win_length": True}, r"PowerSpectrogram: win_length should be of type int, got: bool \(True\)"),
        ({"sample_rate": 0.5}, "PowerSpectrogram: sample_rate is 0.5; it must be at least 1"),
        ({"log": True, "floor": -1.0}, "PowerSpectrogram: floor is -1.0; it must be finite and at least 1.18e-38, for a"),
        ({"log": True, "floor": float("inf")}, "PowerSpectrogram: floor is inf; it must be finite"),
        ({"mean": [0.0] * 401, "std": [1.0] * 401}, "PowerSpectrogram: mean is a list; it must be a torch.Tensor"),
        ({"f_max": 9000.0}, r"f_min, f_max are 0.0, 9000.0; they must be in order within 0..8000.0"),
        ({"f_min": 3.0, "f_max": 4.0}, "no bin lies in 3.0..4.0 Hz; bins are 10.0 Hz apart"),
        ({"pad_mode": "same"}, "pad_mode is 'same'; it must be one of reflect"),
        ({"window_fn": lambda n: torch.ones(n - 1)}, r"window_fn gave shape \[639\]; it must be \[win_length\] = \[640\]"),
        ({"mean": torch.zeros(401)}, "only one of mean and std is given"),
        ({"mean": torch.zeros(400), "std": torch.ones(400)}, r"mean has shape \[400\]; it must be \[F\] = \[401\]"),
        ({"mean": torch.zeros(401), "std": torch.zeros(401)}, "std has a value out of range; it must be finite and above 0"),
    ],
)  # fmt: skip
def test_power_spectrogram_refuses_bad_options(options, sentence):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=sentence):
        ser_fast.PowerSpectrogram(**options)


def test_power_spectrogram_takes_a_float_sample_rate():
    assert ser_fast.PowerSpectrogram(sample_rate=16000.0, floor=-1.0).bins == (0, 401)  # no logarithm, any floor


def test_power_spectrogram_checks_statistics():
    front = ser_fast.PowerSpectrogram()
    with pytest.raises(RuntimeError, match=r"PowerSpectrogram: std is a NoneType; it must be a torch.Tensor"):
        front.set_statistics(front.mean, None)
    assert not front.normalize


@pytest.mark.parametrize("make", [ser_fast.PowerSpectrogram, ser_fast.MelSpectrogram])
def test_spectrogram_computes_in_the_wider_dtype(make):
    """A float64 wave, soundfile's default, is computed in float64 by a float32 module, and a float32 one by a float64."""
    front, wave = make(log=True), torch.randn(2, 4000, dtype=torch.float64)
    front.set_statistics(torch.full_like(front.mean, 0.3), torch.full_like(front.std, 1.7))
    exact = copy.deepcopy(front).double()
    assert front(wave).dtype == torch.float64
    assert torch.equal(front(wave), exact(wave))
    assert torch.equal(exact(wave.float()), exact(wave.float().double()))
    assert front(wave.float()).dtype == torch.float32
    stream = front.stream()
    streamed = torch.cat([*(stream(chunk) for chunk in wave.split(900, 1)), stream.finish()], 1)
    torch.testing.assert_close(streamed, front(wave), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_spectrogram_refuses_half_waves_by_name(dtype):
    with pytest.raises(RuntimeError, match=r"wave has dtype b?float16; it must be float32, float64 or int16"):
        ser_fast.PowerSpectrogram()(torch.zeros(1, 4000, dtype=dtype))

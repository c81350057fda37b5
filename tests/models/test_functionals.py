"""Statistics over masked frames, and what the functionals hear in sounds that are known."""

import copy
import math

import numpy as np
import pytest
import torch
from samples import assert_exact

from ser_fast.data import features
from ser_fast.data.augmentation import change_speed
from ser_fast.data.dataset import Dataset
from ser_fast.models.descriptors import PITCH, VOICED
from ser_fast.models.functionals import Functionals
from ser_fast.models.statistics import GROUPS, QUANTILES, SPAN, distribution, modulation, moments, slopes, trend
from ser_fast.training.features import CachedFeatures

RATE = 16000


def masked() -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames under masks with holes, of one frame and of none; what is masked out is infinite."""
    x, mask = torch.randn(5, 40, 3, dtype=torch.float64), torch.rand(5, 40) < 0.6
    mask[3], mask[4] = False, False
    mask[3, 17] = True
    return x.masked_fill(~mask[..., None], torch.inf), mask


def test_moments_of_equal_frames_have_a_gradient():
    x = torch.ones(1, 3, 2, requires_grad=True)
    mean, std = moments(x, torch.ones(1, 3, dtype=torch.bool))
    (mean.sum() + std.sum()).backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 / 3)) and not std.any()


def test_moments_and_distribution_equal_numpy():
    x, mask = masked()
    found = distribution(x, mask).unflatten(1, (-1, 3))[:4]  # the quantiles lie by feature, the moments do not
    mean, std = moments(x, mask)
    quantiles = distribution(x, mask)[:, 6:].unflatten(1, (3, len(QUANTILES)))
    for row in range(4):
        values = x[row][mask[row]].numpy()
        np.testing.assert_allclose(mean[row], values.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(std[row], values.std(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(quantiles[row], np.quantile(values, QUANTILES, axis=0).T, rtol=1e-12)
        assert_exact(found[row, 0], mean[row])
    assert not distribution(x, mask)[4].any() and not mean[4].any() and not std[4].any()


def test_trend_equals_the_regression_line():
    x, mask = masked()
    x = x.masked_fill(~mask[..., None], 1e3)
    found = trend(x, mask)
    for row in range(3):
        time = mask[row].nonzero()[:, 0].numpy()
        for feature in range(3):
            rate = np.polyfit(time, x[row, mask[row], feature].numpy(), 1)[0]
            assert float(found[row, feature]) == pytest.approx(rate * len(time), rel=1e-9)
    assert not found[3:].any()


def test_slopes_of_a_line_are_constant():
    line = torch.arange(9.0)[None, :, None] * 0.25 + 3
    assert_exact(slopes(line), torch.full((1, 5, 1), 0.25))
    assert slopes(line[:, :3]).shape == (1, 0, 1)


def test_modulation_of_long_input_equals_the_spectrum():
    frames = SPAN + 700  # folded: the spectrum of the whole at the frequencies of one span
    x = torch.zeros(2, frames + 50, 1, dtype=torch.float64)
    x[:, :frames, 0] = 5 + torch.randn(2, frames, dtype=torch.float64)
    x[1, :frames, 0] += 3 * torch.sin(2 * math.pi * 30 / SPAN * torch.arange(frames))
    mask = torch.arange(frames + 50).expand(2, -1) < frames
    found = modulation(x, mask)
    centred = x[:, :frames, 0] - x[:, :frames, 0].mean(1, keepdim=True)
    angles = 2 * math.pi * torch.arange(25, 45, dtype=torch.float64)[:, None] * torch.arange(frames) / SPAN
    power = (torch.exp(1j * angles) @ centred.T.to(torch.complex128)).abs().square().mean(0) / frames
    torch.testing.assert_close(found[:, 0, 3], power.log(), rtol=1e-9, atol=1e-9)
    assert found[1, 0].argmax() == 3 and found[1, 0, 3] - found[0, 0, 3] > 3
    torch.testing.assert_close(modulation(x[:, :frames], mask[:, :frames]), found)


def test_functionals_groups_keep_their_order():
    power, lengths = torch.rand(3, 30, 513), torch.tensor([30, 17, 0])
    whole = Functionals(2, groups=list(GROUPS)).statistics(power, lengths)
    parts = [Functionals(2, groups=(name,)).statistics(power, lengths) for name in GROUPS]
    assert torch.equal(torch.cat(parts, 1), whole) and whole.isfinite().all()
    default = Functionals(2, groups=Functionals(2).groups[::-1])  # in any order
    assert torch.equal(default.statistics(power, lengths), whole[:, : default.classifier.in_features])


def voice(f0: float, seconds: float = 0.6) -> torch.Tensor:
    """Harmonics of ``f0`` that fall by 6 dB an octave."""
    time = torch.arange(int(seconds * RATE)) / RATE
    numbers = torch.arange(1, int(4000 / f0))
    return (0.3 / numbers[:, None] * torch.sin(2 * math.pi * f0 * numbers[:, None] * time)).sum(0)


@pytest.mark.parametrize("f0", [75.0, 120.0, 233.0, 410.0])
def test_functionals_pitch_is_right_within_a_lag(f0):
    model = Functionals(2)
    power, lengths = model.spectrogram(voice(f0)[None], torch.tensor([int(0.6 * RATE)]))
    voicing, pitch, level, _ = model.descriptors._voice(power, torch.ones(1, int(lengths), dtype=torch.bool))
    step = math.log2(PITCH[1] / PITCH[0]) / 63
    assert voicing.min() > 0.9 and (pitch - math.log2(f0 / PITCH[0])).abs().max() < 1.5 * step
    assert level.max() == 0 and level.min() > -0.5


def test_functionals_noise_and_silence_are_unvoiced():
    model = Functionals(2)
    wave = torch.stack([torch.randn(RATE) * 0.1, torch.zeros(RATE)])
    power, lengths = model.spectrogram(wave, torch.tensor([RATE, RATE]))
    valid = torch.ones(2, int(lengths[0]), dtype=torch.bool)
    voicing = model.descriptors._voice(power, valid)[0]
    # A correlation of about sixty independent bins of noise stays near 1 / √60, the largest of many lags too.
    assert (voicing[0] > VOICED).float().mean() < 0.1 and not (voicing[1] > VOICED).any()
    assert torch.isfinite(model.statistics(power, lengths)).all()


def test_functionals_shape_of_a_tone_is_at_its_frequency():
    model = Functionals(2)
    time = torch.arange(RATE) / RATE
    power, _ = model.spectrogram((0.5 * torch.sin(2 * math.pi * 2500 * time))[None], torch.tensor([RATE]))
    shape = model.descriptors._shape(power)[0]
    centroid, spread, _, tilt, *_ = shape.T
    bin_width = RATE / 1024
    assert torch.allclose(centroid * 513 * bin_width, torch.tensor(2500.0), atol=bin_width)
    assert (spread < 0.01).all() and (tilt > 5).all()
    for rolloff in shape.T[-4:]:  # the window spreads a tone over two bins to either side
        assert torch.allclose(rolloff * 513 * bin_width, torch.tensor(2500.0), atol=2 * bin_width)
    flux = shape.T[6]
    assert flux[1:].abs().max() < 1e-3


def test_functionals_train_on_one_utterance():
    model = Functionals(2).train()
    before = model.norm.running_mean.clone()
    model(voice(120.0)[None]).sum().backward()
    assert torch.equal(model.norm.running_mean, before) and model.classifier.weight.grad.isfinite().all()
    model(torch.stack([voice(120.0), voice(240.0)]))
    assert not torch.equal(model.norm.running_mean, before)


def test_functionals_compute_each_row_alone():
    model = Functionals(3).eval()
    wave, lengths, order = torch.randn(4, 9000), torch.tensor([9000, 5000, 300, 0]), [1, 3, 0, 2]
    found = model.features(wave, lengths)
    assert torch.equal(found[1:2], model.features(wave[1:2, :5000], lengths[1:2]))
    assert torch.equal(model.features(wave[order], lengths[order]), found[order])
    for row in range(3):
        groups = model.utterance_features(wave[row, : lengths[row]], model.groups)
        assert torch.equal(torch.cat(list(groups.values())), found[row])
    # Sums of another number of rows are rounded in another order; quantiles and maxima depend on few of them.
    model.spec_augment, model.training = torch.nn.Identity(), True
    model.spec_augment.forward = lambda spec, lengths: spec
    torch.testing.assert_close(model.features(wave, lengths), found, rtol=1e-3, atol=1e-3)


def test_functionals_compute_features_once(monkeypatch):
    model, twin, other = Functionals(3), Functionals(3), Functionals(3, hop_length=200)
    more = Functionals(3, groups=[*model.groups, "levels"])
    waves = [torch.randn(2000 + 100 * i) for i in range(7)]
    data = Dataset("noise", waves, [0, 1, 2, 0, 1, 2, 0], ["a"] * 7, list("abcdefg"), list("xyz"), [])
    whole = CachedFeatures(model, data, range(7))
    first = whole(waves, range(7), [1.0] * 7)
    assert torch.equal(torch.stack(first[2:4]), torch.cat([model.features(wave[None]) for wave in waves[2:4]]))
    computed, compute = [], Functionals._grouped
    monkeypatch.setattr(
        Functionals, "_grouped", lambda self, *given: computed.append(given[2]) or compute(self, *given)
    )
    part = data.part([1, 3, 4])  # of another fold, by a model of another fold
    again = CachedFeatures(twin, part, [2, 0])([waves[4], waves[1]], [0, 1])
    assert torch.equal(again[0], first[4]) and torch.equal(again[1], first[1]) and not computed
    # A model of other groups computes those that are not cached.
    wider = CachedFeatures(more, data, range(7))
    (row,) = wider(waves[:1], [0])
    assert torch.equal(row[: len(first[0])], first[0]) and computed == [["levels"]]
    # Another speed, and another front end.
    (faster,) = whole(waves[:1], [0], [1.1])
    assert torch.equal(faster, model.features(change_speed(waves[0], 1.1)[None])[0])
    assert len(computed) == 3  # the cache's, and this one
    CachedFeatures(other, data, range(7))(waves[:1], [0])
    assert len(computed) == 4


def test_the_cache_of_features_is_bounded(monkeypatch):
    model, wider = Functionals(3), Functionals(3, groups=[*Functionals(3).groups, "levels"])
    waves = [torch.randn(2000) for _ in range(7)]
    data = Dataset("noise", waves, [0] * 7, ["a"] * 7, list("abcdefg"), ["x", "y"], [])
    an_entry = 4 * model.classifier.in_features + len(model.groups) * features.TENSOR_BYTES
    monkeypatch.setattr(features, "KEPT_BYTES", 3 * an_entry)
    monkeypatch.setattr(features, "available_memory", lambda: 0)
    first, again = (CachedFeatures(model, data, range(7))(waves, range(7)) for _ in range(2))
    assert torch.equal(torch.stack(first), torch.stack(again)) and 1 <= len(data.features.entries) <= 3
    assert data.features.bytes == len(data.features.entries) * an_entry
    CachedFeatures(wider, data, range(7))(waves, range(7))  # entries grow
    kept = [values for groups in data.features.entries.values() for values in groups.values()]
    assert data.features.bytes == sum(values.nbytes + features.TENSOR_BYTES for values in kept) <= 3 * an_entry
    # A quarter of the memory that is left and of what the cache holds, where that is more.
    monkeypatch.setattr(features, "available_memory", lambda: 4 * 5 * an_entry - data.features.bytes)
    CachedFeatures(model, data, range(7))(waves, range(7))
    assert 3 * an_entry < data.features.bytes <= 5 * an_entry


@pytest.mark.parametrize("shape", [(3,), (2, 0), (2, 3, 400)])
def test_functionals_refuse_waves_of_another_shape(shape):
    with pytest.raises(RuntimeError, match=r"wave has shape"):
        Functionals(2).eval()(torch.zeros(shape), torch.zeros(2, dtype=torch.long))


def test_functionals_gradient_reaches_the_wave():
    model = Functionals(3).eval()
    wave = voice(130.0)[None, :4000].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(wave).sum(), wave)
    assert torch.isfinite(gradient).all() and gradient.any()


def test_functionals_do_not_cache_masked_input():
    model = Functionals(2).eval()
    wave = torch.randn(1, 9000)
    plain = model(wave)
    other = Functionals(2).eval()
    other.load_state_dict(model.state_dict())
    other.spectrogram.set_statistics(torch.full((513,), 1e-3), torch.ones(513))
    assert not torch.equal(other(wave), plain)  # nor what a normalised spectrogram gives
    model.spectrogram.register_forward_hook(lambda module, _, output: (output[0] * 0.5 + 1e-3, output[1]))
    assert not torch.equal(model(wave), plain)
    third = Functionals(2).eval()
    third.load_state_dict(model.state_dict())
    third.descriptors.register_forward_pre_hook(lambda module, given: (given[0] * 0.5 + 1e-3, given[1]))
    assert not torch.equal(third(wave), plain)


def test_functionals_in_half_keep_float32_statistics():
    model = Functionals(2).eval()
    wave = torch.randn(2, 9000)
    half = copy.deepcopy(model).bfloat16()
    assert {value.dtype for value in half.descriptors.buffers()} == {torch.float32}
    assert half(wave).dtype == torch.bfloat16
    # 2257 products of numbers up to 5 with 8 bits each, and weights of some 0.01.
    torch.testing.assert_close(half(wave).float(), model(wave), rtol=0.05, atol=0.1)
    assert torch.equal(half.float().descriptors.filters, model.descriptors.filters)


def test_functionals_ignore_loudness():
    """The mels are standardised and the rest are ratios; a fourfold amplitude is exact in floating point."""
    model = Functionals(2)
    wave = torch.stack([voice(150.0) + 0.01 * torch.randn(9600), 4 * (voice(150.0))])
    wave[1] = 4 * wave[0]
    found = model.statistics(*model.spectrogram(wave, torch.tensor([9600, 9600])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_cepstra": 65}, "Functionals: n_cepstra is 65; it must be at most n_mels, 64"),
        ({"n_fft": 640}, "Functionals: n_fft is 640; it must be at least 907"),
        ({"sample_rate": 8000}, "Functionals: sample_rate is 8000; it must be at least 10000 hertz"),
        ({"groups": ["shape", "mels"]}, "Functionals: groups is .'shape', 'mels'.; it must be some of dis"),
        ({"groups": ["shape", "shape"]}, "each once"),
        ({"groups": []}, "Functionals: groups is ..; it must be some of"),
        ({"groups": 3}, "Functionals: groups is 3; it must be some of"),
        ({"groups": [["shape"]]}, "it must be some of"),
        ({"n_lags": 0}, "Functionals: n_lags is 0; it must be at least 1"),
    ],
)
def test_functionals_refuse_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Functionals(2, **options)


def test_functionals_check_tensors():
    wave = torch.zeros(2, 8000)
    for call, name in ((lambda: Functionals(3)(wave, [1, 2]), "lengths"), (lambda: Functionals(3)([0.1]), "wave")):
        with pytest.raises(RuntimeError, match=f"Functionals: {name} is a list; it must be a torch.Tensor"):
            call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_functionals_stay_float32_under_autocast(dtype):
    model = Functionals(2, groups=tuple(GROUPS)).eval()
    wave, lengths = torch.stack([voice(150.0), voice(220.0)]), torch.tensor([9600, 7000])
    wanted = model.features(wave, lengths)
    with torch.autocast("cpu", dtype=dtype):
        found = model.features(wave, lengths)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)

"""Augmentation: what it does to a batch, what it leaves alone, and that a seed decides all of it."""

import math
import sys

import pytest
import torch

from ser_fast.data import augmentation
from ser_fast.data.augmentation import Augmentation, Augmenter, SpecAugment, add_noise, change_speed, masks
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.training.trainer import spec_augment

pytest.importorskip("soxr")

LENGTHS = (1601, 3, 777, 1, 0, 2400)


def augmenter(**options) -> Augmenter:
    return Augmenter(Augmentation(**options))


def masking(**options) -> SpecAugment:
    return spec_augment(Augmentation(**options), PowerSpectrogram(16000, hop_length=160))


def random_waves(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator) for length in LENGTHS]


def random_spec(lengths: torch.Tensor, bins: int, seed: int = 0) -> torch.Tensor:
    """Distinct values, so that what a mask hides is seen, and zeros past the lengths."""
    spec = torch.rand(len(lengths), int(lengths.max()), bins, generator=torch.Generator().manual_seed(seed))
    return spec.masked_fill((torch.arange(spec.shape[1]) >= lengths[:, None])[..., None], 0)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wave = torch.nn.utils.rnn.pad_sequence(random_waves(seed), batch_first=True)
    targets = torch.nn.functional.one_hot(torch.arange(len(wave)) % 4, 4).float()
    return wave, torch.tensor(LENGTHS), targets


def test_augmenter_does_nothing_by_default():
    off, waves, state = augmenter(), random_waves(), torch.get_rng_state()
    assert all(after is before for after, before in zip(off.waves(waves, range(6)), waves))
    assert masking() is None
    given = batch()
    assert all(after is before for after, before in zip(off.mix(*given), given))
    assert torch.equal(torch.get_rng_state(), state)


def test_augmenter_depends_on_the_seed_alone():
    options = {"speeds": [0.9, 1.0, 1.1], "snr": [0.0, 20.0], "time_masks": 2, "freq_masks": 2, "mixup": 0.4}
    lengths, waves = torch.tensor([40, 7]), random_waves()
    spec, before = random_spec(lengths, 30), [wave.clone() for wave in random_waves()]

    def run(seed: int, augmenter: Augmenter) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [*augmenter.waves(waves, range(6)), masking(**options)(spec, lengths), *augmenter.mix(*batch())]

    fresh = augmenter(**options)
    first = run(1, fresh)
    run(2, fresh)
    assert all(torch.equal(a, b) for a, b in zip(run(1, fresh), first)), "what is kept must not change the draws"
    assert all(torch.equal(a, b) for a, b in zip(run(1, augmenter(**options)), first))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(run(2, fresh), first))
    assert all(torch.equal(wave, copy) for wave, copy in zip(waves, before))
    assert all(torch.isfinite(tensor).all() for tensor in first)


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_change_speed_scales_length_and_pitch(speed):
    rate, hertz = 16000, 1000
    tone = torch.sin(2 * math.pi * hertz * torch.arange(rate, dtype=torch.float64) / rate).float()
    changed = change_speed(tone, speed)
    assert abs(len(changed) - rate / speed) <= 1
    expected = torch.sin(2 * math.pi * hertz * speed * torch.arange(len(changed), dtype=torch.float64) / rate)
    # soxr's HQ is good to 100 dB and more; at the ends the tone begins and stops, which is no tone.
    inner = slice(500, -500)
    assert (changed - expected)[inner].abs().max() < 1e-4


@pytest.mark.parametrize("length", [0, 1, 2, 3])
@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_change_speed_never_empties_an_utterance(length, speed):
    changed = change_speed(torch.ones(length), speed)
    assert (len(changed) > 0) == (length > 0) and torch.isfinite(changed).all()


def test_augmenter_requires_soxr_for_speeds(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ImportError, match=r"changing the speed needs soxr: pip install 'ser_fast\[train\]'"):
        augmenter(speeds=[1.0, 0.9])
    same = augmenter(speeds=[1.0]).waves(random_waves(), range(6))
    assert all(torch.equal(after, before) for after, before in zip(same, random_waves()))


def test_augmenter_resamples_each_speed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(augmentation, "change_speed", lambda wave, speed: calls.append(speed) or wave * speed)
    varied, waves = augmenter(speeds=[0.9, 1.0, 1.1]), [torch.ones(50)] * 3
    torch.manual_seed(0)
    seen = [{float(wave[0]) for wave in varied.waves(waves, [4, 5, 6])} for _ in range(30)]
    assert set.union(*seen) == {float(torch.tensor(speed)) for speed in (0.9, 1.0, 1.1)}
    assert len(calls) == 9 and sorted(set(calls)) == [0.9, 1.0, 1.1]


def test_augmenter_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(augmentation, "KEPT_BYTES", 500)
    varied, waves = augmenter(speeds=[0.8]), [torch.ones(40), torch.ones(50), torch.ones(20)]
    first = varied.waves(waves, [0, 1, 2])
    again = varied.waves(waves, [0, 1, 2])
    # 200, 252 and 100 bytes: the second does not fit beside the first
    assert [one is other for one, other in zip(first, again)] == [True, True, False]
    assert sum(wave.nbytes for wave in varied._kept.values()) == varied._kept_bytes <= 500
    assert torch.equal(first[2], again[2])


@pytest.mark.parametrize("pink", [False, True])
@pytest.mark.parametrize("snr", [-10.0, 0.0, 7.5, 30.0])
def test_add_noise_has_the_given_ratio(snr, pink):
    torch.manual_seed(3)
    for scale in (1e-4, 1.0):
        wave = scale * torch.randn(5001)
        noise = (add_noise(wave, snr, pink) - wave).double()
        found = 10 * math.log10(wave.double().square().mean() / noise.square().mean())
        # The sum is rounded to 2^-24 of the wave, 144 dB below it; at 30 dB that is 1e-5 of the noise's power.
        assert found == pytest.approx(snr, abs=1e-3)


def test_add_noise_pink_falls_3_db_an_octave():
    torch.manual_seed(4)
    quiet = torch.full((60000,), 1e-6)
    for pink, slope in ((False, 0.0), (True, -3.01)):
        noise = add_noise(quiet, -60.0, pink) - quiet
        power = torch.fft.rfft(noise).abs().square()
        # Means over octaves of 1000 and more bins are good to 10 / ln 10 / sqrt(1000) = 0.14 dB each.
        octaves = torch.stack([power[low : 2 * low].mean() for low in (1000, 2000, 4000, 8000)])
        assert (10 * octaves.log10()).diff().tolist() == pytest.approx([slope] * 3, abs=0.8)


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(1), torch.zeros(300), torch.full((1,), 0.5)])
@pytest.mark.parametrize("pink", [False, True])
def test_add_noise_of_silence_is_finite(wave, pink):
    noisy = add_noise(wave, -100.0, pink)
    assert noisy.shape == wave.shape and torch.isfinite(noisy).all()
    assert wave.any() or torch.equal(noisy, wave)


def test_augmenter_adds_noise_to_a_share():
    torch.manual_seed(5)
    waves = [torch.randn(400) for _ in range(300)]
    noisy = augmenter(snr=[5.0, 15.0], noise_share=0.3).waves(waves, range(300))
    noise = [(after - before).square().mean() for after, before in zip(noisy, waves) if after is not before]
    power = [before.square().mean() for after, before in zip(noisy, waves) if after is not before]
    assert 60 <= len(noise) <= 120  # 90 ± 3.8 standard deviations of 7.9
    ratios = torch.tensor([10 * math.log10(p / n) for p, n in zip(power, noise)])
    assert 4.99 <= ratios.min() < 7 and 13 < ratios.max() <= 15.01
    for share, count in ((0.0, 0), (1.0, 300)):
        noisy = augmenter(snr=[5.0, 5.0], noise_share=share).waves(waves, range(300))
        assert sum(after is not before for after, before in zip(noisy, waves)) == count


def test_augmenter_draws_white_and_pink_noise(monkeypatch):
    kinds = []
    monkeypatch.setattr(augmentation, "add_noise", lambda wave, snr, pink: kinds.append(bool(pink)) or wave)
    torch.manual_seed(12)
    augmenter(snr=[5.0, 15.0], noise_share=1.0).waves([torch.ones(1)] * 400, range(400))
    assert len(kinds) == 400 and 160 <= sum(kinds) <= 240  # 200 ± 4 standard deviations of 10


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("widest", [0, 3, 1000])
def test_masks_hide_at_most_half(count, widest):
    torch.manual_seed(6)
    sizes = torch.tensor([0, 1, 2, 3, 9, 40, 41])
    most = torch.zeros(len(sizes), dtype=torch.int64)
    for _ in range(200):
        found = masks(sizes, 41, count, widest)
        assert found.shape == (7, 41) and found.dtype == torch.bool
        assert not (found & (torch.arange(41) >= sizes[:, None])).any()
        most = most.maximum(found.sum(1))
    assert (most <= (sizes // 2).clamp(max=count * widest)).all()
    if count == 1:
        assert torch.equal(most, (sizes // 2).clamp(max=widest)), "the widest mask is never drawn"


def test_masks_reach_every_position():
    torch.manual_seed(7)
    hits = sum(masks(torch.tensor([11, 6]), 12, 1, 3).long() for _ in range(2000))
    assert (hits[0, :11] > 0).all() and (hits[1, :6] > 0).all() and not hits[0, 11:].any() and not hits[1, 6:].any()


@pytest.mark.parametrize(("times", "freqs"), [(1, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("lengths", [[37, 1, 12, 0, 60], [9], [1], [2, 2]])
def test_spec_augment_fills_masks_with_the_mean(times, freqs, lengths):
    torch.manual_seed(8)
    lengths = torch.tensor(lengths)
    spec = random_spec(lengths, 21)
    masked = masking(time_masks=times, time_mask=0.1, freq_masks=freqs, freq_mask=0.2)
    for _ in range(20):
        found = masked(spec, lengths)
        for row, length in enumerate(lengths.tolist()):
            assert torch.equal(found[row, length:], spec[row, length:])
            if not length:
                continue
            hidden = found[row, :length] != spec[row, :length]
            lines, columns = hidden.all(1), hidden.all(0)
            assert torch.equal(hidden, lines[:, None] | columns), "a mask hides whole frames or whole bins"
            assert lines.sum() <= min(times * 10, length // 2) and columns.sum() <= min(freqs * 4, 10)
            # A sum of 1 260 values below 1 in float32.
            assert torch.allclose(found[row, :length][hidden], spec[row, :length].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "axis"), [({"time_masks": 1, "time_mask": 0.25}, 2), ({"freq_masks": 1, "freq_mask": 0.4}, 1)]
)
def test_spec_augment_draws_every_width(options, axis):
    torch.manual_seed(9)
    spec, lengths = random_spec(torch.tensor([40]), 25), torch.tensor([40])
    masked = spec_augment(Augmentation(**options), PowerSpectrogram(8000, hop_length=200))
    hidden = [(masked(spec, lengths) != spec).all(axis)[0] for _ in range(1000)]
    widths = {int(mask.sum()) for mask in hidden}
    assert widths == set(range(11)), "10 frames of 25 ms, 10 of 25 bins"
    assert torch.stack(hidden).any(0).all(), "some position is never hidden"


def test_spec_augment_of_no_rows():
    spec = torch.zeros(0, 0, 5)
    assert masking(time_masks=1)(spec, torch.zeros(0, dtype=torch.int64)) is spec


@pytest.mark.parametrize("alpha", [0.001, 0.4, 1, 1000])
def test_mix_weighs_waves_and_targets_alike(alpha):
    torch.manual_seed(10)
    wave, lengths, targets = batch()
    wave[:, 0] = torch.arange(1.0, 7.0)  # tells the rows apart
    targets = torch.eye(6)
    mixed, longer, shares = augmenter(mixup=alpha).mix(wave, lengths, targets)
    # Weights of one row sum to 1 and name its two partners.
    assert torch.allclose(shares.sum(1), torch.ones(6)) and (shares >= 0).all() and ((shares > 0).sum(1) <= 2).all()
    assert torch.allclose(mixed, shares @ wave, atol=1e-6)
    partners = [set(row.nonzero()[:, 0].tolist()) | {index} for index, row in enumerate(shares)]
    for row, length in enumerate(longer.tolist()):
        assert length >= max(LENGTHS[i] for i in partners[row])
        assert not mixed[row, length:].any()


def test_mix_weights_follow_alpha():
    torch.manual_seed(11)
    wave, lengths, targets = torch.rand(400, 2), torch.full((400,), 2), torch.eye(400)
    *_, near = augmenter(mixup=0.05).mix(wave, lengths, targets)
    *_, even = augmenter(mixup=500.0).mix(wave, lengths, targets)
    assert ((even > 0).sum(0) <= 2).all() and ((even > 0).sum(1) <= 2).all()
    # Beta(α, α) has variance 1 / (4 (2α + 1)): 0.477² at 0.05 and 0.016² at 500.
    assert (even.diagonal() - 0.5).abs().median() < 0.02 and (near.diagonal() - 0.5).abs().median() > 0.4


@pytest.mark.parametrize("rows", [0, 1])
def test_mix_of_one_row_changes_nothing(rows):
    wave, lengths, targets = torch.randn(rows, 9), torch.full((rows,), 9), torch.rand(rows, 1)
    mixed, longer, shares = augmenter(mixup=0.4).mix(wave, lengths, targets)
    assert torch.allclose(mixed, wave) and torch.equal(longer, lengths) and torch.allclose(shares, targets)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"speeds": [0.9, 0.4]}, r"speeds is \[0.9, 0.4\]; it must be factors in 0.5..2"),
        ({"speeds": [float("nan")]}, r"speeds is \[nan\]; it must be factors in 0.5..2"),
        ({"snr": [20.0, 5.0]}, r"snr is \[20.0, 5.0\]; it must be two in order within -100..100 dB"),
        ({"snr": [5.0]}, r"snr is \[5.0\]; it must be two in order"),
        ({"snr": []}, r"snr is \[\]; it must be two in order"),
        ({"noise_share": 1.5}, r"noise_share is 1.5; it must be in 0..1"),
        ({"time_masks": -1}, "time_masks is -1; it must be at least 0"),
        ({"time_mask": 0.0}, "time_mask is 0.0; it must be above 0 and finite"),
        ({"time_mask": math.inf}, "time_mask is inf; it must be above 0 and finite"),
        ({"freq_masks": -1}, "freq_masks is -1; it must be at least 0"),
        ({"freq_mask": 1.1}, "freq_mask is 1.1; it must be above 0 and at most 1"),
        ({"mixup": -0.1}, r"mixup is -0.1; it must be 0 or in 0.001..1000"),
        ({"mixup": math.nan}, r"mixup is nan; it must be 0 or in 0.001..1000"),
    ],
)
def test_augmentation_refuses_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmentation(**options)


def test_augmentation_options_are_nested():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Augmentation, "augment")
    given = parser.parse_args(["--augment.speeds=[0.9,1,1.1]", "--augment.snr=[5,30]", "--augment.time_masks=2"])
    assert Augmentation(**given.augment.as_dict()) == Augmentation([0.9, 1.0, 1.1], [5.0, 30.0], time_masks=2)

"""Descriptors, pooling and training of DescriptorGRU."""

import numpy as np
import pytest
import torch
from samples import assert_exact

from ser_fast.models import DescriptorGRU, Functionals
from ser_fast.models.descriptor_gru import _mean_and_variance, _normalized

RATE = 16000
PITCH_COLUMN, VOICED_COLUMN, RELATIVE_COLUMN = 21, 23, 35  # after 20 cepstra; voicing is 20, level 22


def tone(*hertz: float) -> torch.Tensor:
    """Return half a second of ten harmonics of each fundamental frequency, one after the other."""
    time = torch.arange(RATE // 2, dtype=torch.float64) / RATE
    parts = [sum((2 * torch.pi * f * k * time).sin() / k for k in range(1, 11)) for f in hertz]
    return torch.cat(parts).float()


def frames_of(model: DescriptorGRU, wave: torch.Tensor) -> torch.Tensor:
    """Return the frame descriptors ``[T, 36]`` of a waveform."""
    return model.utterance_features(wave)["frames"].unflatten(0, (-1, model.width))


def test_features_hold_pitch_relative_to_the_utterance():
    x = frames_of(DescriptorGRU(3, step=1), tone(120.0, 240.0))
    voiced = x[:, VOICED_COLUMN] == 1
    assert voiced.float().mean() > 0.9
    pitch, relative = x[voiced, PITCH_COLUMN], x[voiced, RELATIVE_COLUMN]
    assert_exact(relative, pitch - pitch.mean())
    assert float(relative[-9] - relative[9]) == pytest.approx(1, abs=0.06)  # an octave


def test_features_are_statistics_then_every_second_frame():
    groups, wave = ("trends", "voiced"), tone(120.0, 240.0)
    model, functionals = DescriptorGRU(3, groups=groups), Functionals(3, groups=groups)
    assert model.groups == ("voiced", "trends", "frames")
    x, lengths = model.features(wave[None])
    statistics = functionals.features(wave[None])
    torch.testing.assert_close(x[:, : model.count], statistics, rtol=1e-6, atol=1e-6)
    every = frames_of(DescriptorGRU(3, step=1), wave)
    assert lengths.tolist() == [model.count + 36 * ((len(every) + 1) // 2)]
    torch.testing.assert_close(x[0, model.count :].view(-1, 36), every[::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [(), ("rhythm",)])
def test_features_past_the_length_are_zero(groups):
    model, lengths = DescriptorGRU(3, groups=groups), torch.tensor([16000, 5000, 0])
    x, counts = model.features(torch.randn(3, 16000), lengths)
    assert ((counts - model.count) / 36).tolist() == [49, 14, 0] and x.shape == (3, int(counts[0]))
    for row, count in zip(x, counts.tolist()):
        assert not row[count:].any() and torch.isfinite(row).all()


@pytest.mark.parametrize("options", [{}, {"members": 2, "groups": ("rhythm", "distributions"), "step": 3}])
def test_classify_of_cached_features_equals_forward(options):
    model, wave = DescriptorGRU(3, **options).eval(), torch.randn(2, 12000)
    lengths = torch.tensor([12000, 7001])
    rows = [torch.cat(list(model.utterance_features(wave[i, :n]).values())) for i, n in enumerate(lengths.tolist())]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    for row, whole in zip(rows, model.features(wave, lengths)[0]):
        assert torch.equal(row, whole[: len(row)])
    found = model.classify(padded, torch.tensor([len(row) for row in rows]))
    torch.testing.assert_close(found, model(wave, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "shares"),
    [({}, [1]), ({"members": 3}, [1 / 3] * 3), ({"members": 2, "groups": ("rhythm",)}, [0.5, 0.25, 0.25])],
)
def test_logits_are_the_weighted_mean_of_the_branches(options, shares):
    model = DescriptorGRU(3, **options).eval().double()
    features = model.features(torch.randn(2, 12000), torch.tensor([12000, 7001]))
    branches = model.branch_logits(*features)
    assert len(branches) == len(shares)
    wanted = sum(share * branch for share, branch in zip(shares, branches))
    torch.testing.assert_close(model.classify(*features), wanted, rtol=1e-12, atol=1e-12)


def test_branches_learn_alone():
    model = DescriptorGRU(3, members=2, groups=("rhythm",)).train()
    features = model.features(torch.randn(4, 12000))
    model.branch_logits(*features)[1].sum().backward()
    first, second = model.networks
    assert all(weight.grad is not None for weight in first.parameters())
    assert all(weight.grad is None for weight in second.parameters())
    of_branch = model.classifier.weight.grad.abs().sum(0).split([model.count, 384, 384])
    assert [bool(part.any()) for part in of_branch] == [False, True, False]


def test_weights_sum_to_one_over_valid_frames():
    model = DescriptorGRU(3, members=2).eval()
    _, weights = model(torch.randn(2, 16000), torch.tensor([16000, 5000]), return_weights=True)
    assert weights.shape == (2, 25) and model.weights_hop == 640
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not weights[1, 7:].any()


def test_normalized_uses_valid_frames_alone():
    x, valid = torch.randn(3, 7, 2, dtype=torch.float64), torch.arange(7) < torch.tensor([7, 3, 0])[:, None]
    norm = torch.nn.BatchNorm1d(2, affine=False).double().train()
    found = _normalized(norm, x.masked_fill(~valid[..., None], torch.nan), valid)
    kept = x[valid].numpy()
    wanted = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + norm.eps)
    np.testing.assert_allclose(found[valid], wanted, rtol=1e-12, atol=1e-14)
    assert not found[~valid].any()
    np.testing.assert_allclose(norm.running_mean, 0.1 * kept.mean(0), rtol=1e-12)


def test_mean_and_variance_equal_numpy():
    x, valid = torch.randn(2, 9, 3, dtype=torch.float64), torch.arange(9) < torch.tensor([5, 0])[:, None]
    mean, variance = _mean_and_variance(x.masked_fill(~valid[..., None], torch.nan), valid)
    np.testing.assert_allclose(mean[0], x[0, :5].numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance[0], x[0, :5].numpy().var(0), rtol=1e-12)
    assert not mean[1].any() and not variance[1].any()


def test_training_takes_a_single_utterance():
    model = DescriptorGRU(3).train()
    model(torch.randn(1, 8000)).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels is 0; it must be at least 1"),
        ({"members": 0}, "members is 0; it must be at least 1"),
        ({"step": 0}, "step is 0; it must be at least 1"),
        (
            {"groups": ("pitch",)},
            r"groups is \('pitch',\); it must be some of distributions, .*modulation, each once",
        ),
        ({"n_cepstra": 65}, "n_cepstra is 65; it must be at most n_mels, 64"),
        ({"conv_dropout": 1.0}, "conv_dropout is 1.0; it must be in 0..1, 1 excluded"),
        ({"sample_rate": 8000}, "sample_rate is 8000; it must be at least 10000 hertz"),
        ({"n_fft": 640}, "n_fft is 640; it must be at least 907, the frame and the longest period"),
    ],
)
def test_model_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"DescriptorGRU: {message}"):
        DescriptorGRU(3, **options)

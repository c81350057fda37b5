"""Descriptors, pooling and training of DescriptorGRU."""

import numpy as np
import pytest
import torch
from samples import assert_exact

from ser_fast.models import DescriptorGRU
from ser_fast.models.descriptor_gru import _mean_and_variance, _normalized

RATE = 16000
PITCH_COLUMN, VOICED_COLUMN, RELATIVE_COLUMN = 21, 23, 35  # after 20 cepstra; voicing is 20, level 22


def tone(*hertz: float) -> torch.Tensor:
    """Return half a second of ten harmonics of each fundamental frequency, one after the other."""
    time = torch.arange(RATE // 2, dtype=torch.float64) / RATE
    parts = [sum((2 * torch.pi * f * k * time).sin() / k for k in range(1, 11)) for f in hertz]
    return torch.cat(parts).float()


def test_features_hold_pitch_relative_to_the_utterance():
    x = DescriptorGRU(3).utterance_features(tone(120.0, 240.0))["frames"]
    voiced = x[:, VOICED_COLUMN] == 1
    assert voiced.float().mean() > 0.9
    pitch, relative = x[voiced, PITCH_COLUMN], x[voiced, RELATIVE_COLUMN]
    assert_exact(relative, pitch - pitch.mean())
    assert float(relative[-5] - relative[5]) == pytest.approx(1, abs=0.06)  # an octave


def test_features_past_the_length_are_zero():
    lengths = torch.tensor([16000, 5000, 0])
    x, frames = DescriptorGRU(3).features(torch.randn(3, 16000), lengths)
    assert x.shape == (3, 49, 36) and frames.tolist() == [49, 14, 0]
    for row, count in zip(x, frames.tolist()):
        assert not row[count:].any() and torch.isfinite(row).all()


def test_classify_of_cached_features_equals_forward():
    model, wave = DescriptorGRU(3).eval(), torch.randn(2, 12000)
    lengths = torch.tensor([12000, 7001])
    rows = [model.utterance_features(wave[i, :n])["frames"] for i, n in enumerate(lengths.tolist())]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = model.classify(padded, torch.tensor([len(row) for row in rows]))
    torch.testing.assert_close(found, model(wave, lengths), rtol=1e-5, atol=1e-5)


def test_weights_sum_to_one_over_valid_frames():
    model = DescriptorGRU(3).eval()
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
        ({"n_cepstra": 65}, "n_cepstra is 65; it must be at most n_mels, 64"),
        ({"conv_dropout": 1.0}, "conv_dropout is 1.0; it must be in 0..1, 1 excluded"),
        ({"sample_rate": 8000}, "sample_rate is 8000; it must be at least 10000 hertz"),
        ({"n_fft": 640}, "n_fft is 640; it must be at least 907, the frame and the longest period"),
    ],
)
def test_model_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"DescriptorGRU: {message}"):
        DescriptorGRU(3, **options)

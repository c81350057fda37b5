"""self_attention: equality with torch's own attention, its extremes, dropout and the generator behind it."""

import pytest
import torch
from samples import assert_as_accurate, assert_exact, attention_arguments, op

from ser_fast.functional import self_attention
from ser_fast.ops.self_attention import philox, random_bytes, reference


def heads_first(qkv: torch.Tensor):
    return qkv.transpose(1, 3).unbind(2)


def test_self_attention_equals_torch():
    qkv = torch.randn(2, 70, 3, 4, 8, dtype=torch.float64)
    q, k, v = heads_first(qkv)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert_exact(self_attention(qkv), wanted)
    weights = torch.softmax(q @ k.mT / 8**0.5, -1)
    assert_exact(self_attention(qkv[:, :, :2]), weights.mean(2))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_means_give_the_mean_of_the_output(dropout):
    qkv, lengths = torch.randn(3, 40, 3, 2, 8, dtype=torch.float64), torch.tensor([40, 0, 13])
    seed = torch.tensor(3) if dropout else None
    output = op("self_attention")(qkv, lengths, dropout, seed)
    means = op("self_attention")(qkv[:, :, :2], lengths, dropout, seed)
    wanted = output.sum(1) / lengths.clamp(min=1)[:, None, None]
    assert_exact(torch.einsum("bhs,bshd->bhd", means, qkv[:, :, 2]), wanted)


@pytest.mark.parametrize("values", [False, True])
def test_padded_equals_packed_and_never_reads_padding(values):
    qkv, lengths, dropout, seed = attention_arguments(4, 21, 2, 5, ragged_rows=True, values=values, dropout=0.2)
    packed = torch.cat([row[:length] for row, length in zip(qkv, lengths.tolist())])
    past = torch.arange(21) >= lengths[:, None]
    noisy = qkv.masked_fill(past[..., None, None, None], float("nan")).requires_grad_()
    for function in (op("self_attention"), reference):
        padded, rows = (function(given, lengths, dropout, seed) for given in (noisy, packed))
        found = padded[~past] if values else padded.transpose(0, 1)[:, ~past]
        assert_exact(found, rows)
        assert not (padded if values else padded.transpose(1, 2))[past].any()
        (grad,) = torch.autograd.grad(padded.sum(), noisy)
        assert torch.isfinite(grad).all() and not grad[past].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["large", "minus infinity", "infinity", "only minus infinity"])
def test_self_attention_of_extreme_scores(kind, dtype):
    """As torch.softmax: -inf weighs nothing, +inf or nothing but -inf gives NaN."""
    keys = {"large": [1e4, -1e4, 0, 3], "minus infinity": [-1e30, 1, 2, 3], "infinity": [1e30, 0, 1, 2],
            "only minus infinity": [-1e30] * 4}[kind]  # fmt: skip
    big = 1.0 if kind == "large" else torch.finfo(dtype).max / 2
    keys = [key if abs(key) < 1e5 else key * (big / 1e30) for key in keys]
    qkv = torch.stack([torch.full((4,), 1.0 if kind == "large" else 1e10), torch.tensor(keys), torch.arange(4.0)])
    qkv = qkv.to(dtype).T.reshape(1, 4, 3, 1, 1).contiguous()
    for given in (qkv, qkv[:, :, :2]):
        found, wanted = self_attention(given), reference(given)
        assert bool(wanted.isfinite().all()) == (kind in ("large", "minus infinity"))
        torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("width", [1, 3, 8, 31, 32, 64, 100, 256])
@pytest.mark.parametrize("values", [False, True])
def test_float32_is_as_accurate_for_every_width(width, values):
    """Also for thousands of keys, whose sums are sums of chunks."""
    single = attention_arguments(1, 3000 if width == 8 else 100, 1, width, ragged_rows=False, values=values,
                                 dtype=torch.float32)  # fmt: skip
    grad = torch.randn_like(reference(*single))
    double = (single[0].double(), *single[1:])
    assert_as_accurate(op("self_attention")(*single), reference(*single), reference(*double))
    found, peer, truth = (
        torch.autograd.grad(function(x := given[0].requires_grad_(), *given[1:]), x, grad.to(x.dtype))[0]
        for function, given in ((op("self_attention"), single), (reference, single), (reference, double))
    )
    assert_as_accurate(found, peer, truth)


def test_dropout_follows_torchs_generator():
    qkv, found = torch.randn(2, 30, 2, 2, 4), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(self_attention(qkv, dropout=0.5))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("dropout", [0.001, 0.2, 0.998, 1.0])
def test_dropout_of_any_probability_equals_reference(dropout):
    """The smallest and the largest round to nothing and to everything."""
    qkv, seed = torch.randn(2, 20, 3, 2, 4, dtype=torch.float64), torch.tensor(-5)
    found = op("self_attention")(qkv, None, dropout, seed)
    assert_exact(found, reference(qkv, None, dropout, seed))
    assert dropout < 1 or not found.any()
    assert dropout > 0.001 or torch.equal(found, op("self_attention")(qkv, None, 0.0, None))


def test_dropout_is_unbiased():
    """4000 rows: the standard error of a mean is some 2 % of the weights' spread."""
    qkv = torch.randn(1, 6, 3, 1, 4).expand(4000, -1, -1, -1, -1)
    found, exact = self_attention(qkv, dropout=0.25), self_attention(qkv[:1])
    error = found.std(0) / 4000**0.5
    assert ((found.mean(0) - exact[0]).abs() < 6 * error).all() and (error > 0).all()


def test_philox_gives_its_published_answers():
    """From the test vectors of Random123, the library of the paper's authors: counter, key, result."""
    cases = [
        ([0] * 4, 0, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([0xFFFFFFFF] * 4, -1, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822,
         [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A]),
    ]  # fmt: skip
    for counter, key, wanted in cases:
        found = philox([torch.tensor(word) for word in counter], torch.tensor(key))
        assert [int(word) for word in found] == wanted


def test_random_bytes_are_uniform_and_independent():
    """Chi-squared of 256 values over 640 000 bytes, and no correlation of neighbours along any axis."""
    found = random_bytes(torch.tensor(7), 2, 2, 400)
    counts = found.flatten().bincount(minlength=256).double()
    expected = found.numel() / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * (2 * 255) ** 0.5
    centred = (found.double() - 127.5) / (256**2 / 12) ** 0.5
    for axis in range(4):
        size = found.shape[axis]
        product = (centred.narrow(axis, 0, size - 1) * centred.narrow(axis, 1, size - 1)).flatten()
        assert abs(product.mean()) < 6 / len(product) ** 0.5
    assert not torch.equal(found, random_bytes(torch.tensor(8), 2, 2, 400))

"""attention_pool at the extremes of the softmax, its padding and its gradients."""

import pytest
import torch

from ser_fast.ops.attention_pool import attention_pool, reference


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_attention_pool_of_large_scores_is_finite(scale):
    h = torch.tensor([[[1.0], [3.0], [2.0]]]) * scale
    pooled, weights = attention_pool(h, torch.ones(1))
    assert torch.isfinite(pooled).all()
    assert torch.allclose(weights.sum(), torch.tensor(1.0))
    if scale > 1:
        assert torch.equal(weights, torch.tensor([[0.0, 1.0, 0.0]])) and pooled.item() == h[0, 1].item()


def test_attention_pool_ignores_scores_of_minus_infinity():
    h = torch.tensor([[[-1e30], [1.0], [2.0]]])
    pooled, weights = attention_pool(h, torch.tensor([1e30]))
    assert pooled.item() == 2 and weights.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("scores", "finite"),
    [("-12", True), ("1-2", True), ("-" * 40 + "12", True), ("---", False), ("1+2", False), ("-+", False), ("1" * 40 + "+", False)],
)  # fmt: skip
def test_attention_pool_of_infinite_scores(scores, finite, dtype):
    """As torch.softmax: -inf weighs nothing, +inf or nothing but -inf gives NaN; - and + are scores of -inf and +inf."""
    large = torch.finfo(dtype).max / 2
    first = [{"-": -large, "+": large}.get(score) or int(score) / large for score in scores]
    h = torch.stack([torch.tensor(first, dtype=dtype), torch.randn(len(first), dtype=dtype)], 1)[None]
    w = torch.tensor([large, 0], dtype=dtype)
    found, wanted = attention_pool(h, w), reference(h, w)
    assert bool(wanted[1].isfinite().all()) == bool(wanted[0].isfinite().all()) == finite
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("function", [attention_pool, reference])
def test_attention_pool_never_reads_padding(function):
    h, lengths = torch.randn(3, 5, 4), torch.tensor([5, 2, 0])
    wanted = function(h, torch.ones(4), lengths)
    noisy = h.masked_fill((torch.arange(5) >= lengths[:, None])[..., None], float("nan")).requires_grad_()
    found = function(noisy, torch.ones(4, requires_grad=True), lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    found[0].sum().backward()
    assert torch.isfinite(noisy.grad).all() and not noisy.grad[2].any()


def test_attention_pool_gradient_through_either_output():
    h = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    for pick in (0, 1):
        assert torch.autograd.gradcheck(lambda h, w, pick=pick: attention_pool(h, w)[pick], (h, w))


def test_rows_without_frames_are_zero_beside_nan():
    h, lengths = torch.randn(2, 5, 3), torch.tensor([5, 0])
    w = torch.tensor([1.0, torch.nan, 1.0])
    for pool in (torch.ops.ser_fast.attention_pool, reference):
        pooled, weights = pool(h, w, lengths)
        assert pooled[0].isnan().all() and not pooled[1].any() and not weights[1].any()

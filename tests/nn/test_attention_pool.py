"""AttentionPool against equation 5 of the attention-CGRU paper."""

import pytest
import torch
from samples import assert_exact, ragged

import ser_fast


def test_attention_pool_equals_the_equation():
    pool = ser_fast.AttentionPool(6).double()
    h, lengths = torch.randn(4, 9, 6, dtype=torch.float64), ragged(4, 9)
    pooled, weights = pool(h, lengths, return_weights=True)
    for row, length in enumerate(lengths.tolist()):
        frames = h[row, :length]
        alpha = (frames @ pool.weight).exp()
        alpha = alpha / alpha.sum()
        assert_exact(weights[row, :length], alpha)
        assert_exact(pooled[row], alpha @ frames)
    assert not weights[torch.arange(9) >= lengths[:, None]].any()
    assert torch.equal(pool(h, lengths), pooled)


def test_attention_pool_checks_embed_dim():
    with pytest.raises(ValueError, match="AttentionPool: embed_dim is 0; it must be at least 1"):
        ser_fast.AttentionPool(0)

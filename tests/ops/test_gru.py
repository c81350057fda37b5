"""The recurrence: what is zero past a row's length, and special values."""

import pytest
import torch
from samples import gru_arguments, ragged

from ser_fast.ops import gru


def test_gru_is_zero_past_each_length():
    lengths = ragged(5, 12)
    gx, w = torch.randn(12, 5, 2, 9), torch.randn(2, 9, 3)
    y, _, gates = torch.ops.ser_fast.gru(gx, w, None, None, lengths, True, True)
    past = torch.arange(12)[:, None] >= lengths
    assert not y[past].any() and not gates[past].any()


def test_gru_in_float16_computes_in_float32():
    gx, w_hh, b_hh, h0, lengths, after, _ = gru_arguments(4, 3, 2, 5, ragged_rows=True, reset_after=False)
    tensors = [t.half() for t in (gx, w_hh, b_hh, h0)]
    y, h_n = gru.gru(*tensors, lengths, reset_after=after)
    truth = gru.gru(*(t.float() for t in tensors), lengths, reset_after=after)
    assert y.dtype == h_n.dtype == torch.float16
    assert torch.equal(y, truth[0].half()) and torch.equal(h_n, truth[1].half())
    reference = gru.reference(*tensors, lengths, after)
    assert torch.allclose(y.float(), reference[0].float(), atol=2 * torch.finfo(torch.float16).eps, rtol=0)


@pytest.mark.parametrize("payload", [1, 0x1FF, 0x200, 0x3FFFFF])
def test_gru_propagates_every_nan(payload):
    gx = torch.zeros(1, 1, 1, 3)
    for gate in range(3):
        gx.zero_().view(torch.int32)[0, 0, 0, gate] = 0x7FC00000 | payload
        y, _ = gru.gru(gx, torch.ones(1, 3, 1), h0=torch.ones(1, 1, 1))
        assert y.isnan().all()


def test_gru_does_not_warn():
    """pytest turns warnings into errors; a user's are shown."""
    gx, w_hh, b_hh, h0, lengths, *_ = gru_arguments(3, 3, 2, 2, ragged_rows=True, reset_after=True)
    y, _ = gru.gru(gx, w_hh, b_hh, h0, lengths)
    assert torch.isfinite(y).all()

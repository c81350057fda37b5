"""Self-attention against torch: by softmax and dropout in eager torch, and as scaled_dot_product_attention.

Utterances have Emo-DB's lengths, heads the width of BiGRU-MHA's. Training has dropout, whose weights torch keeps for
the backward; equality is checked without it. "means" is what mean pooling takes: one weight per key. The floor is the
products of valid frames at the rate of a matrix product.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import EMODB_FRAMES, MODES, check, step
from torch import Tensor

from ser_fast.functional import self_attention

HEADS, WIDTH = 8, 32
DROPOUT = 0.2
TOLERANCE = 1e-4


def eager(qkv: Tensor, valid: Tensor, dropout: float, means: bool) -> Tensor:
    """Return outputs ``[B, T, heads, d]`` of ``[B, T, 3, heads, d]``, or means ``[B, heads, T]``, 0 in padding."""
    q, k, v = qkv.transpose(1, 3).unbind(2)
    scores = (q * WIDTH**-0.5 @ k.mT).masked_fill(~valid[:, None, None], -torch.inf)
    weights = F.dropout(torch.softmax(scores, -1), dropout)
    if means:
        return weights.masked_fill(~valid[:, None, :, None], 0).sum(2) / valid.sum(1)[:, None, None]
    return (weights @ v).transpose(1, 2).masked_fill(~valid[..., None, None], 0)


def fused(qkv: Tensor, valid: Tensor, dropout: float) -> Tensor:
    """Return the same outputs by scaled_dot_product_attention."""
    q, k, v = qkv.transpose(1, 3).unbind(2)
    mixed = F.scaled_dot_product_attention(q, k, v, valid[:, None, None], dropout)
    return mixed.transpose(1, 2).masked_fill(~valid[..., None, None], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("means", [True, False], ids=["means", "outputs"])
def bench_self_attention(compare, means, mode):
    """Self-attention."""
    lengths = torch.tensor(EMODB_FRAMES)
    batch, frames = len(lengths), max(EMODB_FRAMES)
    valid = torch.arange(frames) < lengths[:, None]
    qkv = torch.randn(batch, frames, 3, HEADS, WIDTH).requires_grad_(mode == "training")
    grad = torch.randn((batch, HEADS, frames) if means else (batch, frames, HEADS, WIDTH))
    given = qkv[:, :, :2] if means else qkv

    def steps(dropout: float) -> dict:
        calls = {
            "ours": lambda: self_attention(given, lengths, dropout),
            "eager torch": lambda: eager(qkv, valid, dropout, means),
        }
        if not means:
            calls["SDPA"] = lambda: fused(qkv, valid, dropout)
        return {name: step(mode, call, [qkv], grad) for name, call in calls.items()}

    case = f"B={batch}, 164..533 frames, {HEADS} heads of {WIDTH}, {'means' if means else 'outputs'}, {mode}"
    exact = steps(0.0)
    wanted = exact["eager torch"]()
    errors = {name: check(f"{case}, {name}", call(), wanted, TOLERANCE) for name, call in exact.items()}
    timed = steps(DROPOUT if mode == "training" else 0.0)
    products = {(True, "inference"): 1, (False, "inference"): 2, (True, "training"): 4, (False, "training"): 7}
    operations = products[means, mode] * 2 * HEADS * WIDTH * float((lengths.double() ** 2).sum())
    compare(case, timed.pop("ours"), timed, operations=operations, error=errors["ours"], tolerance=TOLERANCE)

"""Attention pooling against torch: eager, compiled, and as scaled dot-product attention with one query.

The floor is the memory traffic at the bandwidth of a large copy: h is read once in inference; in training it is read
twice and its gradient is written once. Padding is not read, but its zero gradient is written. A batch that fits in
the caches can be faster than the floor.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import EMODB_FRAMES, MODES, check, step
from torch import Tensor

from ser_fast.functional import attention_pool

SIZES = [(64, 300, 256), (32, 900, 256)]
TOLERANCE = 1e-4


def eager(h: Tensor, w: Tensor, valid: Tensor | None) -> Tensor:
    """Return pooled ``[B, D]`` of ``h`` ``[B, T, D]`` over the frames of the mask ``[B, T]``, in eager torch."""
    scores = h @ w
    if valid is not None:
        scores = scores.masked_fill(~valid, -torch.inf)
    return (torch.softmax(scores, 1)[:, None] @ h).squeeze(1)


def one_query(h: Tensor, w: Tensor, valid: Tensor | None) -> Tensor:
    """Return the same by scaled_dot_product_attention with w as the only query."""
    mask = None if valid is None else valid[:, None]
    return F.scaled_dot_product_attention(w.expand(len(h), 1, -1), h, h, attn_mask=mask, scale=1.0).squeeze(1)


def compiled(steps: dict[str, Callable], call: Callable) -> str | None:
    """Add a torch.compile call to ``steps`` if it runs here; otherwise return the reason."""
    try:
        call()
    except Exception as error:  # a compiler may fail in any way; the peer is then left out
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    steps["torch.compile"] = call
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("batch,frames,width", SIZES)
def bench_attention_pool(compare, bandwidth, batch, frames, width, ragged, mode):
    """Attention pooling."""
    h = torch.randn(batch, frames, width, requires_grad=mode == "training")
    w = (torch.randn(width) / width**0.5).requires_grad_(mode == "training")
    grad = torch.randn(batch, width)
    lengths = valid = None
    if ragged:
        lengths = torch.tensor(EMODB_FRAMES).repeat(batch // 32) * frames // max(EMODB_FRAMES)
        valid = torch.arange(frames) < lengths[:, None]
    steps = {
        "ours": step(mode, lambda: attention_pool(h, w, lengths)[0], [h, w], grad),
        "eager torch": step(mode, lambda: eager(h, w, valid), [h, w], grad),
        "one-query SDPA": step(mode, lambda: one_query(h, w, valid), [h, w], grad),
    }
    torch.compiler.reset()  # compile each case for its own sizes
    compiled_eager = torch.compile(eager, dynamic=False)
    left_out = compiled(steps, step(mode, lambda: compiled_eager(h, w, valid), [h, w], grad))
    case = f"B={batch} T={frames} D={width}, {'with' if ragged else 'without'} lengths, {mode}"
    wanted = steps["eager torch"]()
    errors = {name: check(f"{case}, {name}", call(), wanted, TOLERANCE) for name, call in steps.items()}
    read = 4 * width * (int(lengths.sum()) if ragged else batch * frames)
    moved = 2 * read + h.nbytes if mode == "training" else read
    extra = {"left out": {"torch.compile": left_out}} if left_out else {}
    compare(
        case, steps.pop("ours"), steps, floor=moved / bandwidth, error=errors["ours"], tolerance=TOLERANCE, **extra
    )

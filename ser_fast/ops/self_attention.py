"""Multi-head self-attention: softmax(Q Kᵀ / √d) V, or the mean of these weights over the queries."""

import math

import torch
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, onnx
from ser_fast.ops.checks import HALF
from ser_fast.ops.lengths import frame_mask, mask_past, padded, unpadded

STEPS = 256  # a dropout probability is rounded to a multiple of 1 / STEPS


def reference(qkv: Tensor, lengths: Tensor | None = None, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """Reference implementation of ``ser_fast::self_attention`` in plain PyTorch, differentiable."""
    _check("self_attention", qkv, lengths, dropout, seed)
    if qkv.dim() == 4:
        output = reference(padded(qkv, lengths), lengths, dropout, seed)
        if qkv.shape[1] == 3:
            return unpadded(output, lengths)
        return unpadded(output.transpose(1, 2), lengths).T.contiguous()
    dtype = qkv.dtype
    q, k, *values = mask_past(qkv.float() if dtype in HALF else qkv, lengths).transpose(1, 3).unbind(2)
    weights = _dropped(_weights(q, k, lengths), dropout, seed)
    if values:
        return (weights @ values[0]).transpose(1, 2).contiguous().to(dtype)
    count = qkv.shape[1] if lengths is None else lengths.clamp(min=1)[:, None, None]
    return (weights.sum(2) / count).to(dtype)


def _weights(q: Tensor, k: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the weights ``[B, heads, T, T]`` of q and k ``[B, heads, T, d]``; 0 in the padding."""
    frames, width = q.shape[2:]
    scores = (q / math.sqrt(width)) @ k.mT
    if lengths is None:
        return torch.softmax(scores, dim=-1)
    valid = frame_mask(lengths, frames)
    # A row without frames keeps finite scores, since a softmax over -inf alone is NaN, and is zeroed afterwards.
    past = (~valid & (lengths > 0)[:, None])[:, None, None]
    both = (valid[:, None] & valid[:, :, None])[:, None]
    return torch.softmax(scores.masked_fill(past, -torch.inf), dim=-1).masked_fill(~both, 0)


def _dropped(weights: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    """Return the weights ``[B, heads, T, T]`` after dropout."""
    dropped = round(STEPS * dropout)
    if dropped == 0:
        return weights
    if dropped == STEPS:
        return weights * 0
    drops = random_bytes(seed, *weights.shape[:3]) < dropped
    return weights.masked_fill(drops, 0) * (STEPS / (STEPS - dropped))


def random_bytes(seed: Tensor, batch: int, heads: int, frames: int) -> Tensor:
    """Return the numbers in 0..255 ``[B, heads, T, T]`` that decide which weight is dropped.

    One call of :func:`philox` with the counter (key, query // 16, head, row) gives the bytes of 16 queries, so a byte
    depends neither on the lengths nor on how a batch is computed.
    """
    axes = (frames, -(-frames // 16), heads, batch)  # of the counter
    counter = [torch.arange(size, device=seed.device).view(-1, *(1,) * axis) for axis, size in enumerate(axes)]
    words = [word.expand(axes[::-1]) for word in philox(counter, seed)]
    found = torch.stack([word >> shift & 0xFF for word in words for shift in (0, 8, 16, 24)], dim=3)
    return found.flatten(2, 3)[:, :, :frames]


def philox(counter: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Return the four 32-bit words of Philox4x32-7 for a counter of four; all int64, the key is the seed's bits."""
    a, b, c, d = counter
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(7):
        (high_a, low_a), (high_c, low_c) = _wide_product(a, 0xD2511F53), _wide_product(c, 0xCD9E8D57)
        a, b, c, d = high_c ^ b ^ low, low_c, high_a ^ d ^ high, low_a
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def _wide_product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 32 bits of a product of 32-bit numbers, without leaving int64."""
    upper, lower = x * (factor >> 16), x * (factor & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, ((upper << 16) + lower) & 0xFFFFFFFF


def reference_backward(
    grad: Tensor, qkv: Tensor, lengths: Tensor | None = None, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    """Reference implementation of ``ser_fast::self_attention_backward`` in plain PyTorch, differentiable."""
    _check_backward(grad, qkv, lengths, dropout, seed)
    if qkv.dim() == 4:
        means = qkv.shape[1] == 2  # whose gradient is [heads, N]
        grad = padded(grad.T, lengths).transpose(1, 2) if means else padded(grad, lengths)
        return unpadded(reference_backward(grad, padded(qkv, lengths), lengths, dropout, seed), lengths)
    dtype = qkv.dtype
    qkv, grad = (qkv.float(), grad.float()) if dtype in HALF else (qkv, grad)
    q, k, *values = mask_past(qkv, lengths).transpose(1, 3).unbind(2)
    weights = _weights(q, k, lengths)
    left = _dropped(weights, dropout, seed)
    if values:
        along = mask_past(grad, lengths).transpose(1, 2)
        slopes, grads = along @ values[0].mT, [left.mT @ along]
    else:
        count = qkv.shape[1] if lengths is None else lengths.clamp(min=1)[:, None, None]
        slopes, grads = (grad / count)[:, :, None], []
    slopes = left * slopes
    slopes = (slopes - weights * slopes.sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    # Not slopes.mT @ q, which MKL adds up one by one: with 3000 keys a digit less.
    return torch.stack([slopes @ k, (q.mT @ slopes).mT, *grads], dim=2).transpose(1, 3).contiguous().to(dtype)


def _check(op: str, qkv: Tensor, lengths: Tensor | None, dropout: float, seed: Tensor | None) -> tuple[tuple, str]:
    """Check the arguments; return the shape of the output, as sizes and in symbols."""
    checks.first(op, "qkv", qkv, *checks.FLOATING)
    sizes = tuple(qkv.shape)
    packed = len(sizes) == 4 and lengths is not None
    good = (packed or len(sizes) == 5) and 0 not in sizes and sizes[-3] in (2, 3)
    allowed = "[B, T, 2 or 3, heads, d] with no size 0, or packed with lengths"
    checks.require(good, op, f"qkv has shape {list(sizes)}", allowed)
    if packed:
        checks.require(lengths.dim() == 1, op, f"lengths has shape {list(lengths.shape)}", "[B]")
    *rows, parts, heads, width = sizes
    checks.lengths(op, lengths, qkv, lengths.shape[0] if packed else rows[0], rows[-1])
    checks.require(0 <= dropout <= 1, op, f"dropout is {dropout:f}", "in 0..1")
    if seed is not None:
        checks.require(seed.device == qkv.device, op, f"seed is on {seed.device}", f"on {qkv.device}")
        checks.stored(op, "seed", seed)
        checks.dtype(op, "seed", seed, torch.int64)
        checks.shape(op, "seed", seed, (), "[]")
    checks.require(seed is not None or dropout == 0, op, "seed is None", "a torch.Tensor, for a dropout above 0")
    if packed and checks.readable(lengths):
        total = int(lengths.sum())
        checks.require(total == rows[0], op, f"lengths add up to {total}", f"the packed frames, {rows[0]}")
    if parts == 3:
        return (*rows, heads, width), "[N, heads, d]" if packed else "[B, T, heads, d]"
    return ((heads, *rows), "[heads, N]") if packed else ((rows[0], heads, rows[1]), "[B, heads, T]")


def _check_backward(grad, qkv, lengths, dropout, seed) -> None:
    op = "self_attention_backward"
    checks.operand(op, "grad", grad, qkv, *_check(op, qkv, lengths, dropout, seed))


def new_output(qkv: Tensor, lengths: Tensor | None, dropout: float, seed: Tensor | None) -> Tensor:
    """Check the arguments and return an uninitialised output."""
    return qkv.new_empty(_check("self_attention", qkv, lengths, dropout, seed)[0])


def new_gradient(grad, qkv, lengths, dropout, seed) -> Tensor:
    """Check the arguments and return an uninitialised gradient."""
    _check_backward(grad, qkv, lengths, dropout, seed)
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx, inputs, output):
    qkv, lengths, ctx.dropout, seed = inputs
    ctx.save_for_backward(qkv, lengths, seed)


def _backward(ctx, grad):
    qkv, lengths, seed = ctx.saved_tensors
    return torch.ops.ser_fast.self_attention_backward(grad, qkv, lengths, ctx.dropout, seed), None, None, None


registry.register(
    "self_attention",
    "self_attention(Tensor qkv, Tensor? lengths, float dropout, Tensor? seed) -> Tensor",
    reference=reference,
    fake=new_output,
    backward=_backward,
    setup_context=_setup_context,
)
registry.register(
    "self_attention",
    "self_attention_backward(Tensor grad, Tensor qkv, Tensor? lengths, float dropout, Tensor? seed) -> Tensor",
    reference=reference_backward,
    fake=new_gradient,
)


def self_attention(qkv: Tensor, lengths: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attend from every frame to the valid frames of its row: softmax(Q Kᵀ / √d) V in each head.

    Keeps nothing of size T²: the backward computes the weights again and draws the same dropout. With queries and
    keys alone it returns the weights' mean over the queries, c. By linearity Σ_s c_s v_s is the mean over the frames
    of the attention's output, for any values v that are linear in the frames.

    Without lengths equivalent to ``q, k, v = qkv.transpose(1, 3).unbind(2)``, ``weights = F.dropout(torch.softmax(q @
    k.mT / d**0.5, -1), dropout)`` and ``(weights @ v).transpose(1, 2)``, or ``weights.mean(2)`` without values.

    Args:
        qkv: queries, keys and optionally values of every frame, float32, float64, float16 or bfloat16; half precision
            is computed in float32. Any strides; a dense last axis is used without a copy. With lengths also packed:
            the valid frames of all rows one after the other.
        lengths: valid frames of each row, int64 or int32, on qkv's device; all frames if None. The output is 0 past
            each length.
        dropout: probability of dropping a weight, in 0..1, rounded to a multiple of 1/256. The seed is drawn from
            torch's generator.

    Shape:
        qkv ``[B, T, 3, heads, d]`` or packed ``[N, 3, heads, d]``, output ``[B, T, heads, d]`` or ``[N, heads, d]``;
        with 2 in place of 3 the output is ``[B, heads, T]`` or ``[heads, N]``. lengths ``[B]``.

    Returns:
        The output, differentiable in qkv.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value. Lengths are not read on CUDA.

    Example:
        >>> import torch
        >>> qkv, lengths = torch.randn(2, 5, 3, 4, 8), torch.tensor([5, 2])
        >>> self_attention(qkv, lengths).shape
        torch.Size([2, 5, 4, 8])
        >>> means = self_attention(qkv[:, :, :2], lengths)
        >>> means.shape, means[1, 0, 2:]
        (torch.Size([2, 4, 5]), tensor([0., 0., 0.]))
    """
    checks.given("self_attention", qkv=qkv)
    checks.tensors("self_attention", qkv=qkv, lengths=lengths)
    seed = torch.randint(2**63 - 1, (), device=qkv.device) if dropout else None
    if checks.transforming() or onnx.exporting():
        return reference(qkv, lengths, dropout, seed)
    dtype = qkv.dtype
    if dtype in HALF and qkv.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        _check("self_attention", qkv, lengths, dropout, seed)
        return torch.ops.ser_fast.self_attention(qkv.float(), lengths, dropout, seed).to(dtype)
    return torch.ops.ser_fast.self_attention(qkv, lengths, dropout, seed)

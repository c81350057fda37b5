"""Frame attention pooling: a softmax over time of w·h weighs the frames' sum."""

import torch
from torch import Tensor

from ser_fast import backends
from ser_fast.ops import checks, onnx
from ser_fast.ops.checks import HALF


def reference(h: Tensor, w: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The op ``ser_fast::attention_pool`` in plain torch, differentiable: the truth kernels are held to."""
    _check("attention_pool", h, w, lengths)
    dtype = h.dtype
    if dtype in HALF:
        h, w = h.float(), w.float()
    if lengths is None:
        weights = torch.softmax(h @ w, dim=1)
    else:
        valid = torch.arange(h.shape[1], device=h.device) < lengths[:, None]
        h = h.masked_fill(~valid[..., None], 0)
        # An empty row would be a softmax of nothing but -inf: it keeps finite scores and is zeroed afterwards.
        scores = (h @ w).masked_fill(~valid & valid.any(1, keepdim=True), -torch.inf)
        weights = torch.softmax(scores, dim=1) * valid
    return (weights[:, None] @ h).squeeze(1).to(dtype), weights.to(dtype)


def reference_backward(
    grad_pooled: Tensor,
    grad_weights: Tensor | None,
    h: Tensor,
    w: Tensor,
    pooled: Tensor,
    weights: Tensor,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The op ``ser_fast::attention_pool_backward`` in plain torch: gradients of h ``[B, T, D]`` and of w ``[D]``.

    The score's gradient is ds_t = α_t (g·h_t − g·pooled + e_t − Σ α e), e the gradient of the weights.
    """
    if lengths is not None:
        valid = torch.arange(h.shape[1], device=h.device) < lengths[:, None]
        h = h.masked_fill(~valid[..., None], 0)
    along = (h @ grad_pooled[..., None]).squeeze(2)
    mean = (grad_pooled * pooled).sum(1, keepdim=True)
    if grad_weights is not None:
        along = along + grad_weights
        mean = mean + (grad_weights * weights).sum(1, keepdim=True)
    score = weights * (along - mean)
    grad_h = weights[..., None] * grad_pooled[:, None] + score[..., None] * w
    return grad_h, (score[..., None] * h).sum((0, 1))


WIDEST = 8192  # what the lanes of a block hold: kPoolWidest in kernels/attention_pool.h


def on_cuda(h: Tensor, w: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The op by the CUDA C++ kernel, or by the reference where a frame is too wide for a block."""
    fits = h.dim() == 3 and h.shape[2] <= WIDEST
    kernel = torch.ops.ser_fast_cuda.attention_pool if fits else reference
    return kernel(h, w, lengths)


def backward_on_cuda(grad_pooled, grad_weights, h, w, pooled, weights, lengths) -> tuple[Tensor, Tensor]:
    """Likewise."""
    fits = h.dim() == 3 and h.shape[2] <= WIDEST
    kernel = torch.ops.ser_fast_cuda.attention_pool_backward if fits else reference_backward
    return kernel(grad_pooled, grad_weights, h, w, pooled, weights, lengths)


def _check(op: str, h: Tensor, w: Tensor, lengths: Tensor | None) -> None:
    checks.dtype(op, "h", h, *checks.FLOATING)
    sizes = tuple(h.shape)
    checks.require(len(sizes) == 3 and 0 not in sizes, op, f"h has shape {list(sizes)}", "[B, T, D] with no size 0")
    checks.operand(op, "w", w, h, (sizes[2],), "[D]")
    checks.lengths(op, lengths, h, sizes[0], sizes[1])


def new_outputs(h, w, lengths):
    _check("attention_pool", h, w, lengths)
    batch, frames, width = h.shape
    return h.new_empty(batch, width), h.new_empty(batch, frames)


def new_gradients(grad_pooled, grad_weights, h, w, pooled, weights, lengths):
    return h.new_empty(h.shape), w.new_empty(w.shape)


def _setup_context(ctx, inputs, output):
    h, w, lengths = inputs
    ctx.save_for_backward(h, w, *output, lengths)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_pooled, grad_weights):
    h, w, pooled, weights, lengths = ctx.saved_tensors
    grad_pooled = torch.zeros_like(pooled) if grad_pooled is None else grad_pooled
    grad_h, grad_w = torch.ops.ser_fast.attention_pool_backward(
        grad_pooled, grad_weights, h, w, pooled, weights, lengths
    )
    return grad_h, grad_w, None


_FORWARD = "attention_pool(Tensor h, Tensor w, Tensor? lengths) -> (Tensor pooled, Tensor weights)"
_BACKWARD = (
    "attention_pool_backward(Tensor grad_pooled, Tensor? grad_weights, Tensor h, Tensor w, Tensor pooled,"
    " Tensor weights, Tensor? lengths) -> (Tensor grad_h, Tensor grad_w)"
)
backends.cuda_library.define(_FORWARD)
backends.cuda_library.define(_BACKWARD)
backends.register(
    _FORWARD,
    reference=reference,
    cuda=on_cuda,
    fake=new_outputs,
    backward=_backward,
    setup_context=_setup_context,
    half_on=("cuda",),
)
backends.register(
    _BACKWARD,
    reference=reference_backward,
    cuda=backward_on_cuda,
    fake=new_gradients,
    half_on=("cuda",),
)


def attention_pool(h: Tensor, w: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool frames by attention: α_t = exp(w·h_t) / Σ exp(w·h_s) over the valid frames, pooled = Σ α_t h_t.

    Equation 5 of the attention CGRU paper (Computer Systems & Applications 32(1), 2023).

    Args:
        h: frames ``[B, T, D]``.
        w: the scoring vector ``[D]``.
        lengths: valid frames of each row, int64 or int32 ``[B]``, on h's device. A row of length 0 pools to 0.

    Returns:
        ``pooled`` ``[B, D]`` and the weights α ``[B, T]``, 0 past each length.

    Raises:
        RuntimeError: a shape, dtype, device or length that does not fit, by name. Lengths are not read on CUDA.
    """
    checks.tensors("attention_pool", h=h, w=w, lengths=lengths)
    if checks.transforming() or onnx.exporting():
        return reference(h, w, lengths)
    dtype = h.dtype
    if dtype in HALF and h.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        _check("attention_pool", h, w, lengths)
        pooled, weights = torch.ops.ser_fast.attention_pool(h.float(), w.float(), lengths)
        return pooled.to(dtype), weights.to(dtype)
    return torch.ops.ser_fast.attention_pool(h, w, lengths)

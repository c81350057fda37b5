"""Frame attention pooling: the sum of frames, weighted by a softmax over time of w·h."""

import torch
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, onnx
from ser_fast.ops.checks import HALF
from ser_fast.ops.lengths import frame_mask, mask_past


def reference(h: Tensor, w: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reference implementation of ``ser_fast::attention_pool`` in plain PyTorch, differentiable."""
    _check("attention_pool", h, w, lengths)
    dtype = h.dtype
    if dtype in HALF:
        h, w = h.float(), w.float()
    if lengths is None:
        weights = torch.softmax(h @ w, dim=1)
    else:
        valid, h = frame_mask(lengths, h.shape[1]), mask_past(h, lengths)
        # A row without frames keeps finite scores, since a softmax over -inf alone is NaN, and is zeroed afterwards.
        scores = (h @ w).masked_fill(~valid & (lengths > 0)[:, None], -torch.inf)
        weights = torch.softmax(scores, dim=1).masked_fill(~valid, 0)
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
    """Reference implementation of ``ser_fast::attention_pool_backward`` in plain PyTorch.

    The score's gradient is ds_t = α_t (g·h_t − g·pooled + e_t − Σ α e), with g the gradient of ``pooled`` and e that
    of the weights; then dh_t = α_t g + ds_t w and dw = Σ ds_t h_t.

    Returns:
        Gradients of h ``[B, T, D]`` and of w ``[D]``.
    """
    _check_backward(grad_pooled, grad_weights, h, w, pooled, weights, lengths)
    h = mask_past(h, lengths)
    along = (h @ grad_pooled[..., None]).squeeze(2)
    mean = (grad_pooled * pooled).sum(1, keepdim=True)
    if grad_weights is not None:
        along = along + grad_weights
        mean = mean + (grad_weights * weights).sum(1, keepdim=True)
    score = weights * (along - mean)
    grad_h = weights[..., None] * grad_pooled[:, None] + score[..., None] * w
    return grad_h, (score[..., None] * h).sum((0, 1))


WIDEST = 8192  # features that a block of the CUDA kernel holds: kPoolWidest in kernels/attention_pool.h


def on_cuda(h: Tensor, w: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """CUDA kernel of ``attention_pool``; falls back to the reference for frames too wide for a block."""
    fits = h.dim() == 3 and h.shape[2] <= WIDEST
    kernel = torch.ops.ser_fast_cuda.attention_pool if fits else reference
    return kernel(h, w, lengths)


def backward_on_cuda(grad_pooled, grad_weights, h, w, pooled, weights, lengths) -> tuple[Tensor, Tensor]:
    """CUDA backward of ``attention_pool``; falls back to the reference like the forward."""
    fits = h.dim() == 3 and h.shape[2] <= WIDEST
    kernel = torch.ops.ser_fast_cuda.attention_pool_backward if fits else reference_backward
    return kernel(grad_pooled, grad_weights, h, w, pooled, weights, lengths)


def on_triton(h: Tensor, w: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Triton kernel of ``attention_pool``; falls back to the reference for frames too wide for a program."""
    from ser_fast.kernels import attention_pool as kernels

    outputs = new_outputs(h, w, lengths)
    return kernels.attention_pool(h, w, lengths, *outputs) if kernels.fits(h.shape[2]) else reference(h, w, lengths)


def backward_on_triton(grad_pooled, grad_weights, h, w, pooled, weights, lengths) -> tuple[Tensor, Tensor]:
    """Triton backward of ``attention_pool``; falls back to the reference like the forward."""
    from ser_fast.kernels import attention_pool as kernels

    args = grad_pooled, grad_weights, h, w, pooled, weights, lengths
    _check_backward(*args)
    return (kernels.attention_pool_backward if kernels.fits(h.shape[2]) else reference_backward)(*args)


def _check(op: str, h: Tensor, w: Tensor, lengths: Tensor | None) -> None:
    checks.first(op, "h", h, *checks.FLOATING)
    sizes = tuple(h.shape)
    checks.require(len(sizes) == 3 and 0 not in sizes, op, f"h has shape {list(sizes)}", "[B, T, D] with no size 0")
    checks.operand(op, "w", w, h, (sizes[2],), "[D]")
    checks.lengths(op, lengths, h, sizes[0], sizes[1])


def _check_backward(grad_pooled, grad_weights, h, w, pooled, weights, lengths) -> None:
    op = "attention_pool_backward"
    _check(op, h, w, lengths)
    batch, frames, width = h.shape
    checks.operand(op, "grad_pooled", grad_pooled, h, (batch, width), "[B, D]")
    checks.optional(op, "grad_weights", grad_weights, h, (batch, frames), "[B, T]")
    checks.operand(op, "pooled", pooled, h, (batch, width), "[B, D]")
    checks.operand(op, "weights", weights, h, (batch, frames), "[B, T]")


def new_outputs(h: Tensor, w: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check the arguments and return uninitialised outputs."""
    _check("attention_pool", h, w, lengths)
    batch, frames, width = h.shape
    return h.new_empty(batch, width), h.new_empty(batch, frames)


def new_gradients(grad_pooled, grad_weights, h, w, pooled, weights, lengths) -> tuple[Tensor, Tensor]:
    """Check the arguments and return uninitialised gradients."""
    _check_backward(grad_pooled, grad_weights, h, w, pooled, weights, lengths)
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
registry.cuda_library.define(_FORWARD)
registry.cuda_library.define(_BACKWARD)
registry.register(
    "attention_pool",
    _FORWARD,
    reference=reference,
    triton=on_triton,
    cuda=on_cuda,
    fake=new_outputs,
    backward=_backward,
    setup_context=_setup_context,
    half_on=("cuda",),
)
registry.register(
    "attention_pool",
    _BACKWARD,
    reference=reference_backward,
    triton=backward_on_triton,
    cuda=backward_on_cuda,
    fake=new_gradients,
    half_on=("cuda",),
)


def attention_pool(h: Tensor, w: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pool frames by attention: α_t = exp(w·h_t) / Σ_s exp(w·h_s) over the valid frames, pooled = Σ_t α_t h_t.

    Equation 5 of the attention CGRU paper (Computer Systems & Applications 32(1), 2023). Without lengths equivalent
    to ``weights = torch.softmax(h @ w, 1); pooled = (weights[:, None] @ h).squeeze(1)``.

    Args:
        h: frames, float32, float64, float16 or bfloat16; half precision is summed in float32.
        w: scoring vector, of h's dtype.
        lengths: valid frames of each row, int64 or int32, on h's device; all frames if None. A row of length 0 has
            pooled 0 and weights 0.

    Shape:
        h ``[B, T, D]``, w ``[D]``, lengths ``[B]``; pooled ``[B, D]``, weights ``[B, T]``.

    Returns:
        ``(pooled, weights)``; the weights are 0 past each row's length. Differentiable in h and w.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value. Lengths are not read on CUDA.

    Example:
        >>> import torch
        >>> h, w = torch.randn(2, 5, 8), torch.randn(8)
        >>> pooled, weights = attention_pool(h, w, lengths=torch.tensor([5, 2]))
        >>> pooled.shape, weights.shape
        (torch.Size([2, 8]), torch.Size([2, 5]))
        >>> weights[1, 2:]
        tensor([0., 0., 0.])
    """
    checks.given("attention_pool", h=h, w=w)
    checks.tensors("attention_pool", h=h, w=w, lengths=lengths)
    if checks.transforming() or onnx.exporting():
        return reference(h, w, lengths)
    dtype = h.dtype
    if dtype in HALF and h.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        _check("attention_pool", h, w, lengths)
        pooled, weights = torch.ops.ser_fast.attention_pool(h.float(), w.float(), lengths)
        return pooled.to(dtype), weights.to(dtype)
    return torch.ops.ser_fast.attention_pool(h, w, lengths)

"""2-D convolution, maximum over 2 x 2 windows and ReLU in one pass over a padded batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, onnx
from ser_fast.ops.checks import HALF
from ser_fast.ops.lengths import frame_mask, mask_past, padded, unpadded

NO_WINNER = 255  # kNoWinner and kMostPositions in kernels/conv_pool.h
MOST_POSITIONS = 63


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    channels_last: bool,
    pooled_frames: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference implementation of ``ser_fast::conv_pool`` in plain PyTorch, differentiable."""
    _check("conv_pool", x, weight, bias, lengths, pooled_frames)
    if x.dim() == 3:
        y, winners = reference(padded(x, lengths), weight, bias, lengths, channels_last)
        return unpadded(y, (lengths + 1) // 2), unpadded(winners, (lengths + 1) // 2)
    pixels = _pixels(x, weight, bias, lengths)
    best, index = F.max_pool2d(pixels, 2, ceil_mode=True, return_indices=True)
    # Windows begin at even frames and bins, so the parities are the place in the window.
    place = index // x.shape[2] % 2 * 2 + index % x.shape[2] % 2
    best, position = best.unflatten(0, (-1, x.shape[0])).max(0)
    place = place.unflatten(0, (-1, x.shape[0])).gather(0, position[None])[0]
    winners = (4 * position + place).masked_fill(best <= 0, NO_WINNER).to(torch.uint8)
    return _ordered(best.relu(), channels_last), _ordered(winners, True)


def reference_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    winners: Tensor,
    lengths: Tensor | None,
    channels_last: bool,
    pooled_frames: int | None,
    needs_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference implementation of ``ser_fast::conv_pool_backward`` in plain PyTorch, differentiable.

    Returns:
        Gradients of x, empty unless ``needs_grad_x``, of weight and of bias.
    """
    _check_backward(grad, x, weight, winners, lengths, channels_last, pooled_frames)
    if x.dim() == 3:
        grad, winners = (padded(tensor, (lengths + 1) // 2) for tensor in (grad, winners))
        arguments = grad, padded(x, lengths), weight, winners, lengths, channels_last, None, needs_grad_x
        grad_x, *others = reference_backward(*arguments)
        return unpadded(grad_x, lengths) if needs_grad_x else grad_x, *others
    batch, frames, bins, channels = x.shape
    positions, padding = channels - weight.shape[1] + 1, _padding(weight)
    if lengths is not None:
        x, grad = mask_past(x, lengths), mask_past(grad, (lengths + 1) // 2)
    grad = grad if channels_last else grad.transpose(2, 3)
    chosen = winners[..., None] == torch.arange(4 * positions, device=x.device, dtype=torch.uint8)
    spread = (grad[..., None] * chosen).unflatten(-1, (positions, 2, 2))  # [B, T', F', O, P, 2, 2]
    spread = spread.permute(4, 0, 3, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)  # [P, B, O, 2 T', 2 F']
    pixels = spread.flatten(0, 1)[..., :frames, :bins]
    stacked = _stacked(x, weight)
    grad_weight = torch.nn.grad.conv2d_weight(stacked, weight.shape, pixels, padding=padding).contiguous()
    grad_bias = pixels.sum((0, 2, 3))
    if not needs_grad_x:
        return x.new_empty(0), grad_weight, grad_bias
    parts = torch.nn.grad.conv2d_input(stacked.shape, weight, pixels, padding=padding).permute(0, 2, 3, 1)
    grad_x = sum(
        F.pad(part, (first, positions - 1 - first)) for first, part in enumerate(parts.unflatten(0, (-1, batch)))
    )
    return mask_past(grad_x, lengths).contiguous(), grad_weight, grad_bias


def _pixels(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return the convolution at all positions along the channels, ``[P B, O, T, F]``, 0 past each length."""
    # torch's own derivative fails for some strides of the weight.
    pixels = F.conv2d(_stacked(mask_past(x, lengths), weight), weight.contiguous(), bias, padding=_padding(weight))
    if lengths is None:
        return pixels
    # Before the ReLU a 0 is as good as no pixel.
    past = ~frame_mask(lengths, x.shape[1]).repeat(pixels.shape[0] // x.shape[0], 1)
    return pixels.masked_fill(past[:, None, :, None], 0)


def _stacked(x: Tensor, weight: Tensor) -> Tensor:
    """Return all groups of K neighbouring channels, ``[P B, K, T, F]``."""
    depth = weight.shape[1]
    groups = [x[..., first : first + depth] for first in range(x.shape[3] - depth + 1)]
    return torch.cat(groups).permute(0, 3, 1, 2)


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _ordered(y: Tensor, channels_last: bool) -> Tensor:
    """Return ``[B, O, T', F']`` with the axes of the op's output, contiguous."""
    return (y.permute(0, 2, 3, 1) if channels_last else y.transpose(1, 2)).contiguous()


def _check(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, pooled_frames: int | None
) -> None:
    checks.first(op, "x", x, *checks.FLOATING)
    image = tuple(x.shape)
    packed = len(image) == 3 and lengths is not None
    allowed = "[B, T, F, C], or packed [N, F, C] with lengths, with no size 0"
    checks.require((packed or len(image) == 4) and 0 not in image, op, f"x has shape {list(image)}", allowed)
    checks.given(op, weight=weight)
    filter = tuple(weight.shape)
    checks.operand(op, "weight", weight, x, filter, "[O, K, kt, kf]")
    fewest, most = max(1, image[-1] - MOST_POSITIONS + 1), image[-1]
    good = len(filter) == 4 and filter[0] > 0 and fewest <= filter[1] <= most and filter[2] % 2 and filter[3] % 2
    allowed = f"[O, K, kt, kf] with K in {fewest}..{most} and kt and kf odd"
    checks.require(bool(good), op, f"weight has shape {list(filter)}", allowed)
    checks.optional(op, "bias", bias, x, (filter[0],), "[O]")
    if not packed:
        checks.lengths(op, lengths, x, image[0], image[1])
        checks.require(pooled_frames is None, op, f"pooled_frames is {pooled_frames}", "None, since x is padded")
        return
    checks.require(lengths.dim() == 1, op, f"lengths has shape {list(lengths.shape)}", "[B]")
    checks.lengths(op, lengths, x, len(lengths), image[0])
    if checks.readable(lengths):
        total, pooled = int(lengths.sum()), pooled_total(lengths)
        checks.require(total == image[0], op, f"lengths add up to {total}", f"the packed frames, {image[0]}")
        allowed = f"the sum of ceil(lengths / 2), {pooled}"
        checks.require(pooled_frames == pooled, op, f"pooled_frames is {pooled_frames}", allowed)


def pooled_total(lengths: Tensor) -> int:
    """Return the packed frames of the output, the sum of ceil(lengths / 2)."""
    return sum((length + 1) // 2 for length in lengths.tolist())


def _sizes(x: Tensor, weight: Tensor, channels_last: bool, pooled_frames: int | None) -> tuple[int, ...]:
    pooled = ((x.shape[-2] + 1) // 2, weight.shape[0])
    frames = (pooled_frames,) if x.dim() == 3 else (x.shape[0], (x.shape[1] + 1) // 2)
    return *frames, *(pooled if channels_last else pooled[::-1])


def _check_backward(grad, x, weight, winners, lengths, channels_last, pooled_frames) -> None:
    op, frames = "conv_pool_backward", "[N'" if x.dim() == 3 else "[B, T'"
    _check(op, x, weight, None, lengths, pooled_frames)
    checks.given(op, winners=winners)
    checks.require(winners.device == x.device, op, f"winners is on {winners.device}", f"on {x.device}")
    checks.stored(op, "winners", winners)
    checks.dtype(op, "winners", winners, torch.uint8)
    checks.shape(op, "winners", winners, _sizes(x, weight, True, pooled_frames), f"{frames}, F', O]")
    letters = f"{frames}, F', O]" if channels_last else f"{frames}, O, F']"
    checks.operand(op, "grad", grad, x, _sizes(x, weight, channels_last, pooled_frames), letters)


def new_outputs(x, weight, bias, lengths, channels_last, pooled_frames) -> tuple[Tensor, Tensor]:
    """Check the arguments and return uninitialised outputs."""
    _check("conv_pool", x, weight, bias, lengths, pooled_frames)
    winners = x.new_empty(_sizes(x, weight, True, pooled_frames), dtype=torch.uint8)
    return x.new_empty(_sizes(x, weight, channels_last, pooled_frames)), winners


def new_gradients(
    grad, x, weight, winners, lengths, channels_last, pooled_frames, needs_grad_x
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and return uninitialised gradients."""
    _check_backward(grad, x, weight, winners, lengths, channels_last, pooled_frames)
    sizes = x.shape if needs_grad_x else (0,)
    return x.new_empty(sizes), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx, inputs, output):
    x, weight, bias, lengths, *ctx.layout = inputs
    ctx.save_for_backward(x, weight, output[1], lengths)
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    x, weight, winners, lengths = ctx.saved_tensors
    needs_grad_x = ctx.needs_input_grad[0]
    grad_x, grad_weight, grad_bias = torch.ops.ser_fast.conv_pool_backward(
        grad, x, weight, winners, lengths, *ctx.layout, needs_grad_x
    )
    return grad_x if needs_grad_x else None, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


registry.register(
    "conv_pool",
    "conv_pool(Tensor x, Tensor weight, Tensor? bias, Tensor? lengths, bool channels_last, SymInt? pooled_frames)"
    " -> (Tensor y, Tensor winners)",
    reference=reference,
    fake=new_outputs,
    backward=_backward,
    setup_context=_setup_context,
    half_on=("cuda",),
)
registry.register(
    "conv_pool",
    "conv_pool_backward(Tensor grad, Tensor x, Tensor weight, Tensor winners, Tensor? lengths, bool channels_last,"
    " SymInt? pooled_frames, bool needs_grad_x) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference=reference_backward,
    fake=new_gradients,
    half_on=("cuda",),
)


def conv_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    channels_last: bool = True,
) -> Tensor:
    """Convolve in time and frequency with "same" zero padding, then max-pool by 2 in both and apply ReLU.

    Without lengths and with K = C equivalent to ``relu(max_pool2d(conv2d(x.permute(0, 3, 1, 2), weight, bias,
    padding="same"), 2, ceil_mode=True)).permute(0, 2, 3, 1)``. The convolution itself is never stored, and the
    backward computes only the pixels that won.

    A filter over fewer channels than x has, K < C, takes all C - K + 1 positions along them, and the maximum is also
    taken over these: ``Conv3d`` followed by max-pooling that closes the third axis.

    Args:
        x: channels-last images, float32, float64, float16 or bfloat16; padded, or packed: the valid frames of all
            rows one after the other, with lengths whose values can be read.
        weight: filters, of x's dtype, in the order of ``nn.Conv2d``'s; K in max(1, C - 62)..C; kt and kf are odd.
        bias: bias of each filter, of x's dtype; 0 if None.
        lengths: valid frames of each row, int64 or int32, on x's device; all frames if None. Frames past the length
            count as 0 and have no part in the maximum.
        channels_last: order of the outputs' last two axes. False gives frames whose features are ordered as after
            ``conv.transpose(1, 2)``, ready for ``flatten(2)`` and a recurrence. Default: True.

    Shape:
        x ``[B, T, F, C]``, or packed ``[N, F, C]``; weight ``[O, K, kt, kf]``, bias ``[O]``, lengths ``[B]``; y ``[B,
        ceil(T / 2), ceil(F / 2), O]``, or packed ``[N', ceil(F / 2), O]`` with N' the sum of ``ceil(lengths / 2)``.
        ``channels_last=False`` swaps the last two axes.

    Returns:
        y, which is 0 past ``ceil(lengths / 2)``. Differentiable in x, weight and bias; of equal pixels the first has
        the gradient, in the order of positions, frames, bins.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value. Lengths are not read on CUDA.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 10, 7, 3), torch.randn(16, 3, 5, 3)
        >>> conv_pool(x, weight, lengths=torch.tensor([10, 4])).shape
        torch.Size([2, 5, 4, 16])
    """
    checks.given("conv_pool", x=x, weight=weight)
    checks.tensors("conv_pool", x=x, weight=weight, bias=bias, lengths=lengths)
    if onnx.exporting():
        return _exported(x, weight, bias, lengths, channels_last)
    pooled_frames = pooled_total(lengths) if x.dim() == 3 and lengths is not None else None
    if checks.transforming():
        return reference(x, weight, bias, lengths, channels_last, pooled_frames)[0]
    run, dtype = torch.ops.ser_fast.conv_pool, x.dtype
    if dtype in HALF and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        _check("conv_pool", x, weight, bias, lengths, pooled_frames)
        bias = None if bias is None else bias.float()
        return run(x.float(), weight.float(), bias, lengths, channels_last, pooled_frames)[0].to(dtype)
    return run(x, weight, bias, lengths, channels_last, pooled_frames)[0]


def _exported(x, weight, bias, lengths, channels_last) -> Tensor:
    """Return the op without winners, for graphs with dynamic sizes, which ``ceil_mode`` would fix to odd or even."""
    pixels = _pixels(x, weight, bias, lengths)
    # Written as 2 * ceil(n / 2): torch 2.11 cannot prove that n + n % 2 is even.
    frames, bins = ((size + 1) // 2 * 2 for size in pixels.shape[2:])
    whole = F.pad(pixels, (0, bins - pixels.shape[3], 0, frames - pixels.shape[2]))
    best = F.max_pool2d(whole, 2).relu().unflatten(0, (-1, x.shape[0])).amax(0)
    return _ordered(best, channels_last)

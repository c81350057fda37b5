"""conv_pool against torch's layers, its winners, ties, padding and NaN; gray_deltas at its edges."""

import pytest
import torch
import torch.nn.functional as F
from samples import CASES, assert_exact, conv_pool_arguments, op

from ser_fast.ops import conv_pool as ops
from ser_fast.ops.conv_pool import conv_pool
from ser_fast.ops.gray_deltas import gray_deltas

pytestmark = pytest.mark.usefixtures("two_threads")

# Channels, filters, depth, frames and bins of filters that float32 computes in Winograd's form.
WINOGRAD = [(3, 16, 2, 5, 3), (16, 32, 16, 5, 3)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_conv_pool_equals_torch_layers(channels_last):
    x, weight, bias, *_ = conv_pool_arguments(2, 9, 7, 5, 6, 5, 5, 3, ragged_rows=False)
    layers = F.relu(F.max_pool2d(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding="same"), 2, ceil_mode=True))
    wanted = layers.permute(0, 2, 3, 1) if channels_last else layers.transpose(1, 2)
    assert_exact(conv_pool(x, weight, bias, channels_last=channels_last), wanted)


@pytest.mark.parametrize("case", CASES["conv_pool"][1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_winners_equal_reference(case, dtype):
    sizes, options = case
    arguments = conv_pool_arguments(*sizes, **options, dtype=dtype)
    assert torch.equal(op("conv_pool")(*arguments)[1], ops.reference(*arguments)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", WINOGRAD)
def test_packed_rows_equal_padded(sizes, dtype):
    x, weight, bias, lengths, *_ = conv_pool_arguments(4, 9, 7, *sizes, ragged_rows=True, dtype=dtype)
    joined = torch.cat([row[:length] for row, length in zip(x, lengths.tolist())])
    padded = conv_pool(x, weight, bias, lengths)
    rows = [row[: (length + 1) // 2] for row, length in zip(padded, lengths.tolist())]
    assert torch.equal(conv_pool(joined, weight, bias, lengths), torch.cat(rows))


def test_conv_pool_never_reads_padding():
    x, weight, bias, lengths, *_ = conv_pool_arguments(4, 9, 7, 3, 16, 2, 5, 3, ragged_rows=True)
    wanted = conv_pool(x, weight, bias, lengths)
    past = torch.arange(9) >= lengths[:, None]
    noisy = x.masked_fill(past[..., None, None], float("nan")).requires_grad_()
    weight.requires_grad_()
    found = conv_pool(noisy, weight, bias, lengths)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert not noisy.grad[past].any() and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("function", [op("conv_pool"), ops.reference])
def test_first_of_equal_pixels_wins(function):
    x, weight = torch.ones(1, 4, 2, 3, dtype=torch.float64), torch.ones(1, 2, 1, 1, dtype=torch.float64)
    y, winners = function(x, weight, None, None, True, None)
    assert y.flatten().tolist() == [2, 2] and not winners.any()
    y, winners = function(-x, weight, None, None, True, None)
    assert not y.any() and (winners == ops.NO_WINNER).all()


@pytest.mark.parametrize("function", [op("conv_pool"), ops.reference])
@pytest.mark.parametrize("value", [float("nan"), -float("nan")])
@pytest.mark.parametrize("place", range(4))
def test_nan_does_not_vanish(function, value, place):
    x = torch.ones(1, 2, 2, 1)
    x[0, place // 2, place % 2] = value
    y, _ = function(x, torch.ones(1, 1, 1, 1), None, None, True, None)
    assert y.isnan().all()


def error_bound(x, weight, bias):
    """Largest error of y in float32, see kernels/conv_pool_winograd.h; x is whole and has even frames and bins."""
    depth, (kt, kf) = weight.shape[1], weight.shape[2:]
    field = F.pad(x.abs().permute(0, 3, 1, 2), (kf // 2, kf // 2, kt // 2, kt // 2))
    largest = F.max_pool2d(field, (kt + 1, kf + 1), 2).unfold(1, depth, 1)  # [B, P, T', F', K]
    scale = (largest @ weight.abs().sum((2, 3)).T).amax(1)
    return 2.0**-24 * (depth * kt + 9) * (16 * scale + bias.abs())


@pytest.mark.parametrize("scale", [0, 1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        *WINOGRAD,
        (8, 9, 8, 3, 3),
        (7, 9, 7, 3, 3),
        (33, 7, 33, 7, 3),
        (3, 5, 2, 3, 3),
        (3, 5, 2, 1, 3),
        (8, 5, 8, 1, 3),
    ],
)
@pytest.mark.parametrize("bins", [4, 6, 40])
def test_float32_error_is_bounded(sizes, bins, scale):
    """On each side of the limits of Winograd's form; values of one scale, of some and over six decades."""
    x, weight, bias, *_ = conv_pool_arguments(2, 36, bins, *sizes, ragged_rows=False)
    x, weight, bias = (value * 10 ** (scale * torch.randn_like(value)).clamp(-3, 3) for value in (x, weight, bias))
    x, weight, bias = (value.float().double() for value in (x, weight, bias))
    found = conv_pool(x.float(), weight.float(), bias.float()).double()
    assert (found - conv_pool(x, weight, bias) <= error_bound(x, weight, bias)).all()
    assert (conv_pool(x, weight, bias) - found <= error_bound(x, weight, bias)).all()


@pytest.mark.parametrize("sizes", WINOGRAD)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e20])
@pytest.mark.parametrize("operand", ["x", "weight", "bias"])
def test_extreme_values_give_the_reference(sizes, value, operand):
    x, weight, bias, *rest = conv_pool_arguments(2, 70, 14, *sizes, ragged_rows=False, dtype=torch.float32)
    clean = conv_pool(x, weight, bias)
    chosen = {"x": x[1, 40, 5:6, 1:2], "weight": weight[3, 1, 1:2, 1:2], "bias": bias[3:4]}[operand]
    chosen.fill_(value)
    found, wanted = conv_pool(x, weight, bias), ops.reference(x, weight, bias, *rest)[0]
    # At the edges the kernel multiplies zeros, and torch leaves them out: NaN and 0 for an infinite weight.
    inner = (value[:, 1:-1, 1:-1] for value in (found, wanted))
    torch.testing.assert_close(*inner, rtol=1e-4, atol=1e-4, equal_nan=True)
    if operand == "x":  # other rows, and frames that are far away, do not change by a bit
        assert torch.equal(found[0], clean[0]) and torch.equal(found[1, :16], clean[1, :16])


@pytest.mark.parametrize("sizes", WINOGRAD)
def test_first_of_equal_pixels_wins_in_float32(sizes):
    _, weight, bias, *_ = conv_pool_arguments(1, 1, 1, *sizes, ragged_rows=False, dtype=torch.float32)
    x = torch.randn(sizes[0]).expand(1, 20, 20, -1)
    y, winners = op("conv_pool")(x, weight, bias, None, True, None)
    inner, values = winners[0, 2:-2, 2:-2], y[0, 2:-2, 2:-2]
    assert (values == values[0, 0]).all() and (inner == inner[0, 0]).all()
    assert ((inner % 4 == 0) | (inner == ops.NO_WINNER)).all()


@pytest.mark.parametrize("sizes", WINOGRAD)
def test_outputs_are_bitwise_the_same_for_any_threads(sizes):
    arguments = conv_pool_arguments(5, 40, 21, *sizes, ragged_rows=True, dtype=torch.float32)
    parallel = op("conv_pool")(*arguments)
    torch.set_num_threads(1)  # two_threads sets it back
    assert all(torch.equal(one, other) for one, other in zip(parallel, op("conv_pool")(*arguments)))


def test_gradients_are_bitwise_the_same_for_any_threads():
    x, weight, _, lengths, *rest = conv_pool_arguments(5, 20, 9, 16, 20, 16, 5, 3, ragged_rows=True)
    y, winners = op("conv_pool")(x, weight, None, lengths, *rest)
    arguments = torch.randn_like(y), x, weight, winners, lengths, *rest, True
    parallel = op("conv_pool_backward")(*arguments)
    torch.set_num_threads(1)  # two_threads sets it back
    alone = op("conv_pool_backward")(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(parallel, alone))


def test_backward_without_grad_x_leaves_it_empty():
    x, weight, bias, *rest = conv_pool_arguments(2, 5, 4, 3, 4, 2, 3, 3, ragged_rows=True)
    y, winners = op("conv_pool")(x, weight, bias, *rest)
    with_x, without = (op("conv_pool_backward")(y, x, weight, winners, *rest, needs) for needs in (True, False))
    assert with_x[0].shape == x.shape and without[0].numel() == 0
    assert all(torch.equal(one, other) for one, other in zip(with_x[1:], without[1:]))


@pytest.mark.parametrize("function", [op("conv_pool_backward"), ops.reference_backward])
def test_winners_of_no_pixel_are_ignored(function):
    x, weight, bias, *rest = conv_pool_arguments(2, 5, 4, 3, 4, 2, 3, 3, ragged_rows=False)
    y, winners = op("conv_pool")(x, weight, bias, *rest)
    results = function(y, x, weight, torch.full_like(winners, 77), *rest, True)
    assert not any(result.any() for result in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conv_pool_computes_half_precision_in_float32(dtype):
    x, weight, bias, lengths, *_ = conv_pool_arguments(2, 5, 4, 3, 4, 2, 3, 3, ragged_rows=True, dtype=dtype)
    found = conv_pool(x, weight, bias, lengths)
    assert found.dtype == dtype
    assert torch.equal(found, conv_pool(x.float(), weight.float(), bias.float(), lengths).to(dtype))


def test_gray_deltas_of_constant_rows_are_zero():
    assert not gray_deltas(torch.full((2, 6, 3), -7.0), 18.0, torch.tensor([6, 2])).any()


def test_deltas_of_a_ramp_are_its_slope():
    x = torch.arange(9.0, dtype=torch.float64)[None, :, None].expand(2, 9, 3)
    image = gray_deltas(x, 100.0, torch.tensor([9, 7]))
    steps = image[:, 1:, :, 0] - image[:, :-1, :, 0]
    assert_exact(image[0, 2:7, :, 1], steps[0, 2:7])
    assert_exact(image[1, 2:5, :, 1], steps[1, 2:5])
    assert not image[1, 7:].any()

"""Convolution, pooling and ReLU against torch's operators, at the sizes of CGRU's two layers.

The first layer has one filter position here: the maximum over two is CGRU's own. The floor is the products of the
direct form at the rate of a matrix product: all pixels forward, and for each gradient those that won, one of four.
Winograd's form takes half of the second layer's products forward, so it can be below that floor.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import MODES, check, step

from ser_fast.functional import conv_pool

SIZES = [(32, 320, 129, 3, 16), (32, 160, 65, 16, 32)]
KERNEL = (5, 3)
TOLERANCE = 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch,frames,bins,channels,filters", SIZES)
def bench_conv_pool(compare, batch, frames, bins, channels, filters, mode):
    """Convolution, pooling and ReLU."""
    trains, first = mode == "training", channels == 3
    x = torch.randn(batch, frames, bins, channels)
    weight = torch.randn(filters, channels, *KERNEL) / (15 * channels) ** 0.5
    bias = torch.randn(filters)
    grad = torch.randn(batch, (frames + 1) // 2, (bins + 1) // 2, filters)

    def calls(dtype: torch.dtype) -> dict:
        values = [value.to(dtype).requires_grad_(trains) for value in (x.detach(), weight, bias)]
        image = values[0].detach() if first else values[0]
        given = image, *values[1:]
        functions = {
            "ours": lambda: conv_pool(*given),
            "eager torch": lambda: torchs(image.permute(0, 3, 1, 2), *given[1:]),
            "eager torch, channels first": lambda: torchs(image.permute(0, 3, 1, 2).contiguous(), *given[1:]),
        }
        inputs = list(given[1:] if first else given)
        return {name: step(mode, function, inputs, grad.to(dtype)) for name, function in functions.items()}

    case = f"B={batch} T={frames} F={bins} C={channels} O={filters}, {mode}"
    # In float32 rounding decides which of two nearly equal pixels has the gradient.
    exact = calls(torch.float64)
    check(f"{case}, float64", exact["ours"](), exact["eager torch"](), TOLERANCE)
    steps = calls(torch.float32)
    wanted = steps["eager torch"]()[0]
    errors = {name: check(f"{case}, {name}", call()[0], wanted, TOLERANCE) for name, call in steps.items()}
    gradients = (1 if first else 2) if trains else 0
    operations = (1 + gradients / 4) * 2.0 * weight.numel() * batch * frames * bins
    compare(case, steps.pop("ours"), steps, operations=operations, error=errors["ours"], tolerance=TOLERANCE)


def torchs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the same by torch's operators, from ``[B, C, T, F]``."""
    pixels = F.conv2d(x, weight, bias, padding=(KERNEL[0] // 2, KERNEL[1] // 2))
    return F.relu(F.max_pool2d(pixels, 2, ceil_mode=True)).permute(0, 2, 3, 1)

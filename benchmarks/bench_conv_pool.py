"""Convolution, pooling and ReLU against torch's operators, at the sizes of CGRU's two layers.

The first layer has one filter position here: the maximum over two is CGRU's own. The floor is the products at the
rate of a matrix product: all pixels forward, and for each gradient those that won, one of four.
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
    x = torch.randn(batch, frames, bins, channels).requires_grad_(trains and not first)
    weight = (torch.randn(filters, channels, *KERNEL) / (15 * channels) ** 0.5).requires_grad_(trains)
    bias = torch.randn(filters, requires_grad=trains)
    inputs = [weight, bias] if first else [x, weight, bias]
    grad = torch.randn(batch, (frames + 1) // 2, (bins + 1) // 2, filters)

    def torchs(x: torch.Tensor) -> torch.Tensor:
        pixels = F.conv2d(x, weight, bias, padding=(KERNEL[0] // 2, KERNEL[1] // 2))
        return F.relu(F.max_pool2d(pixels, 2, ceil_mode=True)).permute(0, 2, 3, 1)

    steps = {
        "ours": step(mode, lambda: conv_pool(x, weight, bias), inputs, grad),
        "eager torch": step(mode, lambda: torchs(x.permute(0, 3, 1, 2)), inputs, grad),
        "eager torch, channels first": step(
            mode, lambda: torchs(x.permute(0, 3, 1, 2).contiguous()), inputs, grad
        ),
    }  # fmt: skip
    case = f"B={batch} T={frames} F={bins} C={channels} O={filters}, {mode}"
    wanted = steps["eager torch"]()
    errors = {name: check(f"{case}, {name}", call(), wanted, TOLERANCE) for name, call in steps.items()}
    gradients = len(inputs) - 1 if trains else 0
    operations = (1 + gradients / 4) * 2.0 * weight.numel() * batch * frames * bins
    compare(case, steps.pop("ours"), steps, operations=operations, error=errors["ours"], tolerance=TOLERANCE)

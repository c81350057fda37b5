"""Compare results with a reference, and run a call as an inference or training step."""

from collections.abc import Callable

import torch
from torch import Tensor

# dtype, value of torch's fp32_precision switch, and tolerance of the outputs relative to their largest value: about
# 80 roundings in float32, 5 in tf32, 10 in float16, 6 in bfloat16. Gradients have twice the tolerance.
PRECISIONS = {
    "tf32": (torch.float32, "tf32", 5e-3),
    "bfloat16": (torch.bfloat16, "ieee", 5e-2),
    "float32": (torch.float32, "ieee", 1e-5),
    "float16": (torch.float16, "ieee", 1e-2),
}


def allow(switch: str) -> None:
    """Allow tf32 (switch "tf32") or not ("ieee"), in cuDNN's recurrences, in ours and in matrix products."""
    # torch's older names: torch.compile reads these and fails if the newer ones were set.
    torch.set_float32_matmul_precision("high" if switch == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = switch == "tf32"


def check(case: str, found, wanted, tolerance: float) -> float:
    """Return the largest difference of paired tensors, relative to the largest value of each.

    Raises:
        AssertionError: a shape differs, or the difference exceeds ``tolerance``.
    """
    worst = 0.0
    for one, other in zip(_tensors(found), _tensors(wanted), strict=True):
        if one.shape != other.shape:
            raise AssertionError(f"{case}: shape {list(one.shape)} is not {list(other.shape)}")
        if not other.numel():
            continue
        scale = float(other.double().abs().max()) or 1.0
        error = float((one.double() - other.double()).abs().max()) / scale
        if not error <= tolerance:
            raise AssertionError(f"{case}: differs by {error:.1e} of the largest value, more than {tolerance:.0e}")
        worst = max(worst, error)
    return worst


def _tensors(value) -> list[Tensor]:
    return [value.detach()] if isinstance(value, Tensor) else [tensor.detach() for tensor in value]


def step(mode: str, forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], tuple]:
    """Return a call of ``forward`` that returns its output and, in training, also the gradients of ``inputs``."""

    def inference() -> tuple:
        with torch.inference_mode():
            return (forward(),)

    def training() -> tuple:
        y = forward()
        return (y, *torch.autograd.grad(y, inputs, grad))

    return training if mode == "training" else inference

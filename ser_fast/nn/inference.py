"""Calls without a gradient, and tensors of ``torch.inference_mode`` in modules that are trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ser_fast import _torch_compat
from ser_fast.backends import state
from ser_fast.ops import checks

_PLAIN = (Tensor, nn.Parameter)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_LOWERED = (torch.float32, torch.bfloat16)  # dtypes that autocast casts to bfloat16


def infers(
    x: Tensor, hx: Tensor | None, weights: Callable[[], list[Tensor]], lowers: bool = False
) -> list[Tensor] | None:
    """Return the weights if the compiled ops for inference run a call: on a dense CPU tensor, without a gradient.

    Tracing, ``torch.func``, tensor subclasses and autocast that is not ``lowers`` need the differentiable ops. The
    rest of the arguments is checked by the ops, since looking at a tensor from Python costs as much as a check in C++
    of all of them.

    Args:
        x: the input, whose dtype all tensors must have.
        hx: the states before it; None for zeros.
        weights: returns the weights; not called while tracing.
        lowers: the caller casts the operands by :func:`lowered`.

    Example:
        >>> weight = nn.Parameter(torch.zeros(3, 3))
        >>> infers(torch.zeros(1, 2, 3), None, lambda: [weight]) is None
        True
    """
    if checks.tracing() or not state.current.loaded or type(x) is not Tensor or x.dtype not in _DTYPES:
        return None
    if not (x.is_cpu and x.layout is torch.strided and x.numel()):
        return None
    dtypes = (x.dtype,)
    if torch.is_autocast_enabled("cpu"):
        if not lowers or torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.dtype == torch.float64:
            return None
        dtypes = _LOWERED
    if hx is not None and (type(hx) is not Tensor or hx.dtype not in dtypes or not hx.is_cpu):
        return None
    if _torch_compat.transforming():
        return None
    found, wants_grad = weights(), torch.is_grad_enabled()
    for weight in found:
        if type(weight) not in _PLAIN or (wants_grad and weight.requires_grad):
            return None
    if wants_grad and (x.requires_grad or (hx is not None and hx.requires_grad)):
        return None
    return found if found[0].dtype in dtypes else None


def lowered(x: Tensor, hx: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Return the operands of a call that :func:`infers` accepted, in bfloat16 if autocast is enabled.

    Example:
        >>> with torch.autocast("cpu"):
        ...     lowered(torch.zeros(1), None, [])[0].dtype
        torch.bfloat16
    """
    if not torch.is_autocast_enabled("cpu"):
        return x, hx, weights
    return x.bfloat16(), None if hx is None else hx.bfloat16(), [weight.bfloat16() for weight in weights]


def recordable(*values) -> tuple:
    """Return the values, with copies of inference tensors if gradients are enabled: autograd cannot save those.

    Example:
        >>> with torch.inference_mode():
        ...     features = torch.zeros(2)
        >>> recordable(features)[0].is_inference(), recordable(None)
        (False, (None,))
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return values
    return tuple(value.clone() if isinstance(value, Tensor) and value.is_inference() else value for value in values)

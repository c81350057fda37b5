"""Calls that the compiled ops run whole, and tensors of ``torch.inference_mode`` in modules that are trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ser_fast.backends import state
from ser_fast.ops import checks

_PLAIN = (Tensor, nn.Parameter)
_DTYPES = (torch.float32, torch.float64)


def infers(x: Tensor, hx: Tensor | None, weights: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Return the weights if the compiled ops for inference run a call: on a dense CPU tensor, without a gradient.

    Args:
        x: the input, whose dtype all tensors must have.
        hx: the states before it; None for zeros.
        weights: returns the weights; not called while tracing.

    Example:
        >>> weight = nn.Parameter(torch.zeros(3, 3))
        >>> infers(torch.zeros(1, 2, 3), None, lambda: [weight]) is None
        True
    """
    found = compiled(x, hx, weights)
    if found and torch.is_grad_enabled():
        if x.requires_grad or (hx is not None and hx.requires_grad):
            return None
        for weight in found:
            if weight.requires_grad:
                return None
    return found


def compiled(x: Tensor, hx: Tensor | None, weights: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Return the weights if the compiled ops run a call, in inference or in training: on a dense CPU tensor.

    Tracing, ``torch.func``, autocast and tensor subclasses need the ops that torch can decompose. The rest of the
    arguments is checked by the ops, since looking at a tensor from Python costs as much as a check in C++ of all of
    them. For the arguments see :func:`infers`.
    """
    if checks.tracing() or not state.current.loaded or type(x) is not Tensor or x.dtype not in _DTYPES:
        return None
    if not (x.is_cpu and x.layout is torch.strided and x.numel()):
        return None
    if hx is not None and (type(hx) is not Tensor or hx.dtype != x.dtype or not hx.is_cpu):
        return None
    if checks.transforming() or torch.is_autocast_enabled("cpu"):
        return None
    found = weights()
    for weight in found:
        if type(weight) not in _PLAIN:
            return None
    return found if found[0].dtype == x.dtype else None


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

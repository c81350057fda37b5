"""Calls that the compiled ops run whole, and tensors of ``torch.inference_mode`` in modules that are trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ser_fast.backends import state
from ser_fast.ops import checks

_PLAIN = (Tensor, nn.Parameter)
_TRAINED = (torch.float32, torch.float64)
_INFERRED = (*_TRAINED, torch.bfloat16)
_LOWERED = (torch.float32, torch.bfloat16)  # dtypes that autocast casts to bfloat16


def infers(
    x: Tensor, hx: Tensor | None, weights: Callable[[], list[Tensor]], lowers: bool = False
) -> list[Tensor] | None:
    """Return the weights if the compiled ops for inference run a call: on a dense CPU tensor, without a gradient.

    Args:
        x: the input, whose dtype all tensors must have.
        hx: the states before it; None for zeros.
        weights: returns the weights; not called while tracing.
        lowers: the caller casts the operands by :func:`lowered` under autocast.

    Example:
        >>> weight = nn.Parameter(torch.zeros(3, 3))
        >>> infers(torch.zeros(1, 2, 3), None, lambda: [weight]) is None
        True
    """
    found = compiled(x, hx, weights, _INFERRED, lowers)
    if found and torch.is_grad_enabled():
        if x.requires_grad or (hx is not None and hx.requires_grad):
            return None
        for weight in found:
            if weight.requires_grad:
                return None
    return found


def compiled(
    x: Tensor,
    hx: Tensor | None,
    weights: Callable[[], list[Tensor]],
    dtypes: tuple[torch.dtype, ...] = _TRAINED,
    lowers: bool = False,
) -> list[Tensor] | None:
    """Return the weights if the compiled ops run a call, in inference or in training: on a dense CPU tensor.

    Tracing, ``torch.func``, tensor subclasses and autocast, unless the call ``lowers``, need the ops that torch can
    decompose. The rest of the arguments is checked by the ops, since looking at a tensor from Python costs as much as
    a check in C++ of all of them. For the arguments see :func:`infers`; ``dtypes`` are those of x that run.
    """
    if checks.tracing() or not state.current.loaded or type(x) is not Tensor or x.dtype not in dtypes:
        return None
    if not (x.is_cpu and x.layout is torch.strided and x.numel()):
        return None
    others = (x.dtype,)
    if torch.is_autocast_enabled("cpu"):
        if not lowers or torch.get_autocast_dtype("cpu") != torch.bfloat16 or x.dtype == torch.float64:
            return None
        others = _LOWERED
    if hx is not None and (type(hx) is not Tensor or hx.dtype not in others or not hx.is_cpu):
        return None
    if checks.transforming():
        return None
    found = weights()
    for weight in found:
        if type(weight) not in _PLAIN:
            return None
    return found if found[0].dtype in others else None


def trains(x: Tensor, hx: Tensor | None, weights: Callable[[], list[Tensor]]) -> list[Tensor] | None:
    """Return the weights if the compiled ops for training run a call, whose operands :func:`widened` then casts.

    In bfloat16 they do on processors without products in bfloat16, where torch's take up to ten times as long as
    float32. For the arguments see :func:`infers`.

    Example:
        >>> trains(torch.zeros(1, 2, 3, dtype=torch.float16), None, lambda: []) is None
        True
    """
    wide = state.current.instruction_set != "avx512_bf16"
    return compiled(x, hx, weights, _INFERRED if wide else _TRAINED, wide)


def widened(x: Tensor, hx: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Return the operands of a call that :func:`trains` accepted, in float32 instead of bfloat16.

    Example:
        >>> widened(torch.zeros(1, dtype=torch.bfloat16), None, [])[0].dtype
        torch.float32
    """
    if x.dtype == torch.float64:
        return x, hx, weights
    return x.float(), None if hx is None else hx.float(), [weight.float() for weight in weights]


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

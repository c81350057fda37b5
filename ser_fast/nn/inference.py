"""Tensors of ``torch.inference_mode``, such as the features of a frozen encoder, in modules that are trained."""

import torch
from torch import Tensor


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

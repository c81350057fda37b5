"""Argument checks that name the argument, its value and what is allowed, before anything is computed.

The compiled ops make the same checks in ``csrc/boundary.h``; these serve the reference, the fake kernels of
``torch.compile`` and the modules.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

HALF = (torch.float16, torch.bfloat16)
FLOATING = (torch.float32, torch.float64, *HALF)


def require(good: bool, op: str, found: str, allowed: str) -> None:
    if not good:
        raise RuntimeError(f"{op}: {found}; it must be {allowed}")


def tensors(op: str, **arguments) -> None:
    """Each is a dense tensor or None."""
    for name, value in arguments.items():
        if value is None:
            continue
        require(isinstance(value, Tensor), op, f"{name} is a {type(value).__name__}", "a torch.Tensor")
        require(value.layout == torch.strided, op, f"{name} has layout {value.layout}", "torch.strided")


def shape(op: str, name: str, tensor: Tensor, wanted: tuple, letters: str) -> None:
    found = tuple(tensor.shape)
    require(found == wanted, op, f"{name} has shape {list(found)}", f"{letters} = {list(wanted)}")


def dtype(op: str, name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    names = [str(kind).removeprefix("torch.") for kind in allowed]
    listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    require(tensor.dtype in allowed, op, f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}", listed)


def operand(op: str, name: str, tensor: Tensor | None, like: Tensor, wanted: tuple, letters: str) -> None:
    """An optional operand that goes with a first one: its device, dtype and shape are fixed."""
    if tensor is None:
        return
    require(tensor.device == like.device, op, f"{name} is on {tensor.device}", f"on {like.device}")
    dtype(op, name, tensor, like.dtype)
    shape(op, name, tensor, wanted, letters)


def lengths(op: str, given: Tensor | None, like: Tensor, batch: int, limit: int) -> None:
    """Lengths [batch] on ``like``'s device; their values, 0..limit, are read where that needs no synchronisation."""
    if given is None:
        return
    dtype(op, "lengths", given, torch.int64, torch.int32)
    require(given.device == like.device, op, f"lengths is on {given.device}", f"on {like.device}")
    shape(op, "lengths", given, (batch,), "[B]")
    if not readable(given):
        return
    for index, value in enumerate(given.tolist()):
        require(0 <= value <= limit, op, f"lengths[{index}] is {value}", f"in 0..{limit}")


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they know plain torch, the reference."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def tracing() -> bool:
    """Whether a graph is being made, which must serve other values than those at hand."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def readable(tensor: Tensor) -> bool:
    """Whether the values can be looked at: on CPU, and a real tensor rather than one that is being traced."""
    if tracing() or tensor.device.type != "cpu":
        return False
    fake = isinstance(tensor, torch._subclasses.FakeTensor)
    return not fake and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def of_type(module: str, name: str, value, kind: type) -> None:
    """The wording is torch's, which its tests and its users' tests look for."""
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not good:
        found = f"{type(value).__name__} ({value!r})"
        raise TypeError(f"{module}: {name} should be of type {kind.__name__}, got: {found}")


def sizes(module: str, **values: int) -> None:
    for name, value in values.items():
        of_type(module, name, value, int)
        if value < 1:
            raise ValueError(f"{module}: {name} must be greater than zero, got: {value}")


def operands(module: str, weight: Tensor, **given: Tensor | None) -> None:
    """Dense tensors on the weights' device and, autocast aside, of their dtype."""
    tensors(module, **given)
    for name, value in given.items():
        if value is None:
            continue
        require(value.device == weight.device, module, f"{name} is on {value.device}", f"on {weight.device}")
        if value.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"{module}: RNN {name} dtype ({value.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert {name}: {name}.to({weight.dtype}), or convert model: model.to({value.dtype})"
            )

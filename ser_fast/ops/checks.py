"""Argument checks that name the argument, its value and the constraint, before anything is computed.

The compiled ops make the same checks in ``csrc/boundary.h``. These are for the references, the fake kernels of
``torch.compile`` and the modules.
"""

import torch
from torch import Tensor

from ser_fast import _require, _torch_compat

HALF = (torch.float16, torch.bfloat16)
FLOATING = (torch.float32, torch.float64, *HALF)


def require(good: bool, op: str, found: str, allowed: str) -> None:
    """Raise the RuntimeError "op: found; it must be allowed", as the compiled ops do, unless ``good``."""
    _require.require(good, f"{op}: {found}", allowed, RuntimeError)


def given(op: str, **arguments) -> None:
    """Check that no argument is None."""
    for name, value in arguments.items():
        require(value is not None, op, f"{name} is None", "a torch.Tensor")


def tensors(op: str, **arguments) -> None:
    """Check that each argument is a dense tensor or None."""
    for name, value in arguments.items():
        if value is None:
            continue
        require(isinstance(value, Tensor), op, f"{name} is a {type(value).__name__}", "a torch.Tensor")
        require(value.layout == torch.strided, op, f"{name} has layout {value.layout}", "torch.strided")


def shape(op: str, name: str, tensor: Tensor, wanted: tuple, letters: str) -> None:
    """Check a tensor's shape; ``letters`` names its axes, such as "[B, D]"."""
    found = tuple(tensor.shape)
    require(found == wanted, op, f"{name} has shape {list(found)}", f"{letters} = {list(wanted)}")


def dtype(op: str, name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Check that a tensor has one of the allowed dtypes."""
    names = [str(kind).removeprefix("torch.") for kind in allowed]
    listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    require(tensor.dtype in allowed, op, f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}", listed)


def stored(op: str, name: str, tensor: Tensor) -> None:
    """Check that the storage still holds every element: it may have been freed or resized under the tensor."""
    if not addressable(tensor) or tensor.numel() == 0:
        return
    needed = (tensor.storage_offset() + _extent(tensor)) * tensor.element_size()
    bytes = tensor.untyped_storage().nbytes()
    if bytes < needed:
        allowed = f"of at least {needed} bytes for shape {list(tensor.shape)}: was it freed or resized?"
        require(False, op, f"{name} has a storage of {bytes} bytes", allowed)


def _extent(tensor: Tensor) -> int:
    """Return the number of elements from a tensor's first to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


def apart(op: str, out: Tensor, **inputs: Tensor | None) -> None:
    """Check, in torch's words for ``out=``, that each input lies outside the addresses of ``out``."""
    for name, tensor in inputs.items():
        if tensor is None or not (addressable(out) and addressable(tensor)):
            continue
        (begin, end), (first, last) = (
            (one.data_ptr(), one.data_ptr() + _extent(one) * one.element_size()) for one in (tensor, out)
        )
        if begin < last and first < end:
            raise RuntimeError(
                f"{op}: unsupported operation: some elements of the input tensor {name} and the written-to tensor"
                " out refer to a single memory location. Please clone() the tensor before performing the operation."
            )


def addressable(tensor: Tensor) -> bool:
    """Return whether a tensor has memory: it is on a device, and neither traced nor transformed."""
    return not tracing() and tensor.device.type != "meta" and _torch_compat.has_values(tensor)


def first(op: str, name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Check the op's first operand, which the others are compared with: its storage and dtype."""
    given(op, **{name: tensor})
    stored(op, name, tensor)
    dtype(op, name, tensor, *allowed)


def operand(
    op: str, name: str, tensor: Tensor, like: Tensor, wanted: tuple, letters: str, kind: torch.dtype | None = None
) -> None:
    """Check an operand: the device and, unless ``kind`` is given, the dtype of ``like``, and the shape ``wanted``."""
    given(op, **{name: tensor})
    require(tensor.device == like.device, op, f"{name} is on {tensor.device}", f"on {like.device}")
    stored(op, name, tensor)
    dtype(op, name, tensor, kind or like.dtype)
    shape(op, name, tensor, wanted, letters)


def optional(op: str, name: str, tensor: Tensor | None, like: Tensor, wanted: tuple, letters: str) -> None:
    """Check an operand that may be None."""
    if tensor is not None:
        operand(op, name, tensor, like, wanted, letters)


def lengths(op: str, tensor: Tensor | None, like: Tensor, batch: int, limit: int) -> None:
    """Check lengths ``[B]`` on the device of ``like``; their values, 0..limit, only where reading them is free."""
    if tensor is None:
        return
    dtype(op, "lengths", tensor, torch.int64, torch.int32)
    require(tensor.device == like.device, op, f"lengths is on {tensor.device}", f"on {like.device}")
    stored(op, "lengths", tensor)
    shape(op, "lengths", tensor, (batch,), "[B]")
    if not readable(tensor):
        return
    for index, value in enumerate(tensor.tolist()):
        require(0 <= value <= limit, op, f"lengths[{index}] is {value}", f"in 0..{limit}")


def transforming() -> bool:
    """Return whether torch.func or forward-mode differentiation is active, which need the reference."""
    return not torch.compiler.is_compiling() and _torch_compat.transforming()


def tracing() -> bool:
    """Return whether a graph is being traced, which must hold for other values than the present ones."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor's values can be read for free: on CPU, and neither traced nor transformed."""
    return not tracing() and tensor.device.type == "cpu" and _torch_compat.has_values(tensor)


def of_type(module: str, name: str, value, kind: type) -> None:
    """Check a constructor's argument, in the words of torch's modules, which their tests look for."""
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not good:
        found = f"{type(value).__name__} ({value!r})"
        raise TypeError(f"{module}: {name} should be of type {kind.__name__}, got: {found}")


def sizes(module: str, **values: int) -> None:
    """Check that each value is a positive int, in the words of torch's modules."""
    for name, value in values.items():
        of_type(module, name, value, int)
        if value < 1:
            raise ValueError(f"{module}: {name} must be greater than zero, got: {value}")


def operands(module: str, weight: Tensor, **given: Tensor | None) -> None:
    """Check a module's inputs: dense, in memory, on its weights' device and, outside autocast, of their dtype."""
    tensors(module, **given)
    for name, value in given.items():
        if value is None:
            continue
        require(value.device == weight.device, module, f"{name} is on {value.device}", f"on {weight.device}")
        stored(module, name, value)
        if value.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"{module}: RNN {name} dtype ({value.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert {name}: {name}.to({weight.dtype}), or convert model: model.to({value.dtype})"
            )

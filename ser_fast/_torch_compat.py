"""Every private name of torch that ser_fast uses, in one place.

``tests/test_torch_compat.py`` names the one that vanished and what to do. It also tests ``nn.Module._apply(fn,
recurse)``, which ``ser_fast.GRU`` and ``Constants`` override (checked with 2.11.0 and 2.13.0).
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._guards import TracingContext  # checked with 2.11.0 and 2.13.0
from torch._subclasses.functional_tensor import FunctionalTensor  # checked with 2.11.0 and 2.13.0
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

# torch's own GRU and GRU cell on given weights: the functional forms behind nn.GRU and nn.GRUCell.
gru = torch._VF.gru  # checked with 2.11.0 and 2.13.0
gru_cell = torch._VF.gru_cell  # checked with 2.11.0 and 2.13.0

# Base class of the batch normalisations, which need whole batches.
BatchNorm = nn.modules.batchnorm._BatchNorm  # checked with 2.11.0 and 2.13.0

# Run code outside the tracing modes of torch.export and torch.compile.
without_modes = _disable_current_modes  # checked with 2.11.0 and 2.13.0

# Attributes of nn.GRU that repeat its weights; they would be stale, or not pickle, under another class;
# checked with 2.11.0 and 2.13.0.
GRU_CACHES = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")


def constant_in_graphs(function: Callable) -> Callable:
    """Mark a function whose result a compiled graph keeps as a constant.

    ``torch.compiler.assume_constant_result`` sets the same mark, but imports the compiler, which takes seconds.
    """
    function._dynamo_marked_constant = True  # checked with 2.11.0 and 2.13.0
    return function


def tracing() -> bool:
    """Return whether torch.compile or torch.export is tracing now, also from code that it does not trace."""
    return TracingContext.try_get() is not None  # checked with 2.11.0 and 2.13.0


def transforming() -> bool:
    """Return whether torch.func or forward-mode differentiation is active; both need plain torch operators."""
    # Both names checked with 2.11.0 and 2.13.0.
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def batched(tensor: Tensor) -> bool:
    """Return whether a gradient is one of many that torch computes at once, by ``is_grads_batched`` or vmap."""
    # Both names checked with 2.13.0.
    return torch._C._functorch.is_legacy_batchedtensor(tensor) or torch._C._functorch.is_batchedtensor(tensor)


def has_values(tensor: Tensor) -> bool:
    """Return whether a tensor holds values, unlike the fake and wrapped tensors of tracing and torch.func."""
    # All names checked with 2.11.0 and 2.13.0.
    fake = isinstance(tensor, (torch._subclasses.FakeTensor, FunctionalTensor))
    return not fake and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def restore_gru_weights(module: nn.GRU, names: list[list[str]]) -> None:
    """Rebuild ``GRU_CACHES`` of an nn.GRU from its parameters' names, one list for each layer and direction."""
    vars(module)["_all_weights"] = names
    vars(module)["_flat_weights_names"] = [name for group in names for name in group]
    module._init_flat_weights()  # checked with 2.11.0 and 2.13.0


def import_compiler() -> None:
    """Import torch's compiler, which optimizers import anyway, before a process group starts.

    Imported while a group exists it keeps a reference to the group, which then cannot be destroyed.
    """
    import torch._dynamo  # noqa: F401  checked with 2.11.0 and 2.13.0


def discard_graphs() -> None:
    """Discard all compiled graphs, which hold constants; the compiler is not imported for that."""
    compiler = sys.modules.get("torch._dynamo")  # checked with 2.11.0 and 2.13.0
    if compiler:
        compiler.reset()

"""Registration of ops with torch: schema, reference implementation, kernels, derivative and autocast in one place."""

from collections.abc import Callable

import torch

from ser_fast.backends import dispatch

library = torch.library.Library("ser_fast", "FRAGMENT")
cuda_library = torch.library.Library("ser_fast_cuda", "FRAGMENT")  # the CUDA C++ kernels, with the schemas of csrc/


def register(
    op: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    triton: Callable | None = None,
    cuda: Callable | None = None,
    hidden_size: Callable[..., int | None] = lambda *args: None,
    half_on: tuple[str, ...] = (),
    tags: tuple[torch.Tag, ...] = (),
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    inference: bool = False,
) -> None:
    """Define ``ser_fast::schema``; devices without a kernel of their own run its reference implementation.

    Args:
        op: the member of ``dispatch.OPS`` whose rules choose the kernel on CUDA, where it has kernels for CUDA; a
            backward is named like its op.
        schema: name, arguments and results in torch's schema language.
        reference: the op in plain torch, differentiable.
        fake: checks the arguments and returns outputs of the right shapes.
        triton, cuda: the op on CUDA tensors by the Triton and the CUDA C++ kernel; the reference if not given.
        hidden_size: returns the GRU's hidden size from the op's arguments, which the choice depends on.
        half_on: devices on which autocast gives the op the autocast dtype; on others it gets float32.
        tags: torch's tags for the op.
        backward, setup_context: derivative of the op. Without them the op is itself a backward, and its derivative is
            that of its reference.
        inference: the op has neither a derivative nor a rule for autocast: their dispatch costs more than a small
            call.
    """
    name = schema.split("(")[0]
    library.define(schema, tags=tags)
    library.impl(name, reference, "CompositeExplicitAutograd")
    if triton or cuda:
        library.impl(name, on_cuda_tensors(op, reference, triton, cuda, hidden_size), "CUDA")
    torch.library.register_fake(f"ser_fast::{name}", fake, lib=library)
    if inference:
        return
    if backward is None:
        backward, setup_context = _derivative_of(reference), _keep_arguments
    torch.library.register_autograd(f"ser_fast::{name}", backward, setup_context=setup_context, lib=library)
    for device in ("cpu", "cuda"):
        library.impl(name, _autocast(name, device, device in half_on), f"Autocast{device.upper()}")


def on_cuda_tensors(
    op: str,
    reference: Callable,
    triton: Callable | None = None,
    cuda: Callable | None = None,
    hidden_size: Callable[..., int | None] = lambda *args: None,
) -> Callable:
    """Return a function that runs the chosen backend's kernel, or the reference where that backend has none.

    A forward and its backward may run on different backends: all save and read the same gates, r, z, n and q.
    """
    kernels = {"triton": triton or reference, "cuda": cuda or reference}

    def call(*args):
        first = next(arg for arg in args if isinstance(arg, torch.Tensor))
        path = dispatch.path_on_cuda(op, first.device.index, first.dtype, hidden_size(*args), alone=True)
        try:
            return kernels.get(path, reference)(*args)
        except RuntimeError as error:  # compiled code cannot raise torch's type
            if f"can't allocate memory: {op}" not in str(error):
                raise
            raise torch.OutOfMemoryError(str(error)) from None

    return call


def _keep_arguments(ctx, inputs, output) -> None:
    ctx.positions = [position for position, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
    ctx.save_for_backward(*(inputs[position] for position in ctx.positions))
    ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]


def _derivative_of(reference: Callable) -> Callable:
    """Return a backward that differentiates the reference: slow, and differentiable again."""

    def backward(ctx, *grads):
        arguments = list(ctx.others)
        for position, tensor in zip(ctx.positions, ctx.saved_tensors):
            arguments[position] = tensor
        wanted = [position for position in ctx.positions if ctx.needs_input_grad[position]]

        def call(*tensors):
            full = list(arguments)
            for position, tensor in zip(wanted, tensors):
                full[position] = tensor
            return reference(*full)

        _, pull_back = torch.func.vjp(call, *(arguments[position] for position in wanted))
        found = dict(zip(wanted, pull_back(grads if len(grads) > 1 else grads[0])))
        return tuple(found.get(position) for position in range(len(arguments)))

    return backward


def _autocast(name: str, device: str, half: bool) -> Callable:
    """Return the op under autocast. The dtype is read at the call; the CPU has no kernels for float16."""

    def call(*args):
        dtype = torch.get_autocast_dtype(device)
        if not half or (device == "cpu" and dtype == torch.float16):
            dtype = torch.float32
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.ser_fast, name)(*(_cast(arg, dtype) for arg in args))

    return call


def _cast(arg, dtype: torch.dtype):
    if isinstance(arg, torch.Tensor) and arg.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return arg.to(dtype)
    return arg

"""Data-parallel processes that torchrun starts: collectives, and errors that end all of them with one message.

In a single process every function here is a no-op or returns the value of that process.
"""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ser_fast._require import require
from ser_fast._torch_compat import import_compiler
from ser_fast.backends import dispatch, state, tuned

T = TypeVar("T")


class LostError(RuntimeError):
    """Another process has ended, so that collectives fail."""


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; only rank 0 prints and writes."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def local_world() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


def share() -> slice:
    """Return the slice of each batch that this rank processes; the ranks' slices are alike in number and length."""
    return slice(rank(), None, world())


def device(name: str) -> torch.device:
    """Return the device of this process for "auto", "cpu" or "cuda".

    Raises:
        ValueError: "cuda" without a GPU.
    """
    available = torch.cuda.is_available()
    require(available or name != "cuda", "device is cuda", "auto or cpu, for torch finds no GPU")
    if name == "cpu" or not available:
        return torch.device("cpu")
    if world() == 1:
        return torch.device("cuda")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def agree_on_choices(device: torch.device) -> None:
    """Let all processes choose kernels alike: by the packaged choices if those of ``ser-fast tune`` differ."""
    if world() == 1:
        return
    entry, _ = tuned.read(device)
    digests = gather(tuned.digest(entry and [entry["choices"], entry["rules"]]))
    others = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        state.current.packaged = True
        dispatch.reread()
        if rank() == 0:
            ranks = ", ".join(map(str, others))
            sentence = f"the choices of `ser-fast tune` for rank 0 differ from those for rank {ranks}"
            warnings.warn(f"{sentence}; all processes use the packaged choices", stacklevel=2)


@contextlib.contextmanager
def joined(timeout: timedelta | None = None) -> Iterator[None]:
    """Join the process group of torchrun while the context lasts: gloo for the CPU, NCCL for GPUs.

    Does nothing unless the environment variable ``WORLD_SIZE`` is above 1.

    Args:
        timeout: longest time that a process waits for another; None is torch's default, half an hour on the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        yield
        return
    import_compiler()

    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timeout)
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        gather(None)  # no process may leave before all have joined
        if rank() > 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        elif not nccl:  # torchrun sends SIGTERM to the other processes; one that waits for NCCL ignores it
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL)
        yield


def refuse(error: Exception) -> NoReturn:
    """Raise an error that occurs in every process at the same place: only rank 0 raises it.

    The other processes exit after rank 0, since torchrun ends all processes as soon as one has failed.

    Raises:
        SystemExit: on the other ranks.
    """
    if rank() == 0:
        raise error
    _outlast_rank_0()
    raise SystemExit(1)


def finish() -> None:
    """Wait for all processes; on ranks other than 0 also for the end of rank 0.

    A process that ended earlier could interrupt the last collective of another one.
    """
    if world() > 1:
        with contextlib.suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))
    if rank() > 0:
        _outlast_rank_0()


def _outlast_rank_0() -> None:
    with contextlib.suppress(RuntimeError):
        dist.recv(torch.empty(1), src=0)  # never sent: fails when rank 0 ends


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Raise an error of any process in all of them, with one message. The body must not use collectives."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    reasons = gather(None if failure is None else str(failure))
    if failure is not None:
        refuse(failure)
    for number, reason in enumerate(reasons):
        if reason is not None:
            refuse(RuntimeError(f"rank {number} of {world()}: {reason}"))


def gather(value: T) -> list[T]:
    """Return the values of all processes, by rank; they must be picklable."""
    values = [value] * world()
    if world() > 1:
        with _answered():
            dist.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """Return in every process what ``make()`` returns on rank 0, or raise what it raises there."""
    if world() == 1:
        return make()
    result = [None, None]
    if rank() == 0:
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    with _answered():
        dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one collective; all of one dtype and device."""
    if world() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _answered():
        dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(summed.view_as(tensor))


def sum_gradients(model: nn.Module, numbers: Tensor) -> None:
    """Sum the gradients and ``numbers`` over the processes; one without an utterance adds zeros."""
    if world() == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks([*(parameter.grad for parameter in parameters), numbers])


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if rank() > 0:
            raise SystemExit(1) from error  # rank 0 reports the error
        raise LostError(f"another of the {world()} processes no longer answers") from error

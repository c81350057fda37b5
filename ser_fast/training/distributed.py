"""The processes of one training, as torchrun starts them: what they exchange, and how they fail together.

In a single process all of this does nothing.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

T = TypeVar("T")


class LostError(RuntimeError):
    """Another process has ended, and nothing can be exchanged any more."""


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them; 0 alone prints and writes."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """This process's number among those on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world() > 1 else 0


def share() -> slice:
    """Return the slice of each batch that this rank processes; the ranks' slices are alike in number and length."""
    return slice(rank(), None, world())


def device(name: str) -> torch.device:
    """The device of this process for "auto", "cpu" or "cuda"."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if world() == 1:
        return torch.device("cuda")
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The group of the processes that torchrun started, while the context lasts: gloo for the CPU, NCCL for GPUs.

    A single process, whose environment has no ``WORLD_SIZE`` above 1, joins nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not dist.is_available():
        yield
        return
    import torch._dynamo  # which optimizers import; imported later it would keep the group from ending

    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        gather(None)  # nobody leaves before all have come
        if rank() > 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        elif not nccl:  # torchrun's signal to those who are left; one that waits for NCCL would not hear it
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL)
        yield


def refuse(error: Exception) -> NoReturn:
    """Raise an error that every process meets at the same place: rank 0 tells it, the others end after it.

    They wait, because torchrun ends all processes as soon as one has failed.
    """
    if rank() == 0:
        raise error
    _outlast_rank_0()
    raise SystemExit(1)


def finish() -> None:
    """The last exchange: rank 0 goes on when all have come here, the others when rank 0 has ended.

    A process that ended earlier could cut off one whose last exchange is still under way.
    """
    if world() > 1:
        with contextlib.suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))
    if rank() > 0:
        _outlast_rank_0()


def _outlast_rank_0() -> None:
    with contextlib.suppress(RuntimeError):
        dist.recv(torch.empty(1), src=0)  # which is never sent: this ends when rank 0 does


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """What fails in one process fails in all of them, and is told once. The body must exchange nothing."""
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
    """The values of all processes, by rank; anything that can be pickled."""
    values = [value] * world()
    if world() > 1:
        with _answered():
            dist.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """What ``make()`` returns, or raises, on rank 0: the same in every process."""
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
    """Replace each tensor by its sum over the processes, in one exchange; all of one dtype and device."""
    if world() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _answered():
        dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(summed.view_as(tensor))


def sum_gradients(model: nn.Module, figures: Tensor) -> None:
    """Sum the gradients over the processes, and ``figures`` with them; one that had no utterance adds zeros."""
    if world() == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks([*(parameter.grad for parameter in parameters), figures])


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if rank() > 0:
            raise SystemExit(1) from error  # rank 0 tells
        raise LostError(f"another of the {world()} processes no longer answers") from error

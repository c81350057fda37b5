"""Errors of a batch that does not fit in memory."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch

# torch raises a RuntimeError for memory of the CPU, and for that of cuBLAS and cuDNN.
_TEXT = re.compile(r"can't allocate memory|not enough memory|out of memory|bad_alloc|_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory cannot be allocated."""
    typed = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return typed or (isinstance(error, RuntimeError) and _TEXT.search(str(error)) is not None)


@contextlib.contextmanager
def in_memory(batch_size: int, lengths: Sequence[int], rate: float) -> Iterator[None]:
    """Name the batch in an error of the context that says that memory cannot be allocated.

    Args:
        batch_size: the option.
        lengths: of each utterance of the batch, in samples or frames.
        rate: samples or frames in a second.

    Raises:
        RuntimeError: the batch does not fit in memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        count, seconds = len(lengths), max(lengths, default=0) / rate
        batch, fix = f"{count} utterances of up to {seconds:.1f} s do", "it must be smaller"
        if count == 1:
            batch, fix = f"an utterance of {seconds:.1f} s does", "cut it into shorter ones or leave it out"
        said = (str(error).splitlines() or ["MemoryError"])[0]
        raise RuntimeError(f"batch_size is {batch_size}, and {batch} not fit in memory; {fix} ({said})") from error

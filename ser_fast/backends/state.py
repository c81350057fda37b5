"""The mutable state of backend selection: one object, which tests replace as a whole."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class State:
    """State of backend selection: loaded kernels and the backend of CUDA tensors.

    Args:
        loaded: True if the compiled kernels are loaded.
        reason: why they are not; None if they are.
        instruction_set: instruction set of the compiled CPU kernels, such as "avx512"; None if they are not loaded.
        on_cuda: "auto", "cuda" or "triton".
        widest: largest hidden size whose W_hh fits on the chip of every GPU that runs the CUDA kernels, for each of
            ``dispatch.GRU_PRODUCTS``; zeros until these kernels may be chosen.
        triton_gru_plan: ``ser_fast.kernels.gru.plan`` once the Triton kernels may be chosen; a traced graph cannot
            import it.
        entries: cache of the measurements that apply to each GPU, by its index.
        paths: cache of the fastest path of each call.
    """

    loaded: bool = False
    reason: str | None = None
    instruction_set: str | None = None
    on_cuda: str = "auto"
    widest: tuple[int, ...] = (0, 0, 0)
    triton_gru_plan: Callable | None = None
    entries: dict[int | None, tuple] = field(default_factory=dict)
    paths: dict[tuple, str] = field(default_factory=dict)


current = State()

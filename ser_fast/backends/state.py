"""The mutable state of backend selection: one object, which tests replace as a whole."""

from dataclasses import dataclass, field

from ser_fast.backends.cpu_rules import Rules


@dataclass
class State:
    """State of backend selection: loaded kernels and the backend of CUDA tensors.

    Args:
        loaded: True if the compiled kernels are loaded.
        reason: why they are not; None if they are.
        instruction_set: instruction set of the compiled CPU kernels, such as "avx512"; None if they are not loaded.
        on_cuda: "auto", "cuda" or "triton".
        rules: the rules of the CPU's kernels.
        widest: largest hidden sizes whose W_hh fits on the chip, for each of ``dispatch.GRU_PRODUCTS``, by GPU; a
            GPU is queried at its own first call.
        packaged: True if the choices of ``ser-fast tune`` are ignored, because they differ between the processes.
        hinted: True once a call on an untuned GPU has named ``ser-fast tune``.
        entries: cache of the choices that apply to each GPU, by its index.
        paths: cache of the fastest path of each call.
    """

    loaded: bool = False
    reason: str | None = None
    instruction_set: str | None = None
    on_cuda: str = "auto"
    rules: Rules = field(default_factory=Rules)
    widest: dict[int | None, tuple[int, ...]] = field(default_factory=dict)
    packaged: bool = False
    hinted: bool = False
    entries: dict[int | None, tuple] = field(default_factory=dict)
    paths: dict[tuple, str] = field(default_factory=dict)


current = State()

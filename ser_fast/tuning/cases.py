"""The cases that are timed: shapes, precisions and modes of every op, with our call and torch's of each."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.backends import dispatch, measured
from ser_fast.nn import GRU
from ser_fast.ops import attention_pool, power_spectrogram
from ser_fast.tuning.checks import PRECISIONS, allow, step
from ser_fast.tuning.timing import by

Shape = tuple[int, int, int, int]  # T, B, D and H of a GRU
USUAL: tuple[Shape, ...] = tuple((300, 32, 2, hidden) for hidden in (64, 128, 256, 512))
MORE: tuple[Shape, ...] = tuple((1000, 64, 2, hidden) for hidden in (64, 128, 256, 512))  # with --all
MODES = {
    "gru": ("inference", "training"),
    "attention_pool": ("inference", "training"),
    "power_spectrogram": ("inference",),
}  # fmt: skip  its derivative is torch's on every path
WIDTH = 128  # features of the GRU's input
N_FFT, WINDOW, HOP, BINS = 1600, 640, 160, 401  # of the spectrogram: the models' defaults


@dataclass(frozen=True)
class Case:
    """A call that is timed on every path.

    Args:
        op, precision: as in :mod:`ser_fast.backends.measured`.
        mode: "inference" or "training".
        shape: T, B, D and H of a GRU; T, B and features of the pooling; frames and rows of the spectrogram.
    """

    op: str
    precision: str
    mode: str
    shape: tuple[int, ...]

    @property
    def hidden_size(self) -> int | None:
        """The GRU's hidden size, by which its choices are stored."""
        return self.shape[3] if self.op == "gru" else None

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in zip("TBDH" if self.op == "gru" else "TBF", self.shape))
        return f"{self.op} {self.precision} {sizes}, {self.mode}"

    asdict = asdict


def shapes_of(op: str, shapes: Sequence[Shape]) -> list[tuple[int, ...]]:
    """Return the shapes of an op that go with these shapes of a GRU."""
    if op == "gru":
        return list(dict.fromkeys(shapes))
    wide = {(frames, batch, directions * hidden) for frames, batch, directions, hidden in shapes}
    sizes = wide if op == "attention_pool" else {sizes[:2] for sizes in wide}
    # The largest width of each batch: the pooling is limited by memory reads.
    return sorted({max(same) for _, same in itertools.groupby(sorted(sizes), key=lambda size: size[:2])})


def cases(shapes: Sequence[Shape]) -> list[Case]:
    """Return all cases of these shapes.

    Raises:
        ValueError: a shape is not that of a GRU.
    """
    for shape in shapes:
        found = f"--shapes has {','.join(map(str, shape))}"
        require(len(shape) == 4 and min(shape) > 0 and shape[2] < 3, found, "T,B,D,H above 0 with D 1 or 2")
    return [
        Case(op, precision, mode, shape)
        for op, precisions in measured.PRECISIONS.items()
        for shape, precision, mode in itertools.product(shapes_of(op, shapes), precisions, MODES[op])
    ]


def fits(backend: str, dtype: torch.dtype, hidden: int, gpu: int | None) -> bool:
    """Return whether the backend keeps W_hh of a GRU on the chip, so that modules run its kernel."""
    if backend == "cuda":
        return dispatch.fits_on_chip(hidden, dtype, gpu)
    return backend != "triton" or dispatch.triton_gru_plan(hidden, dtype).resident


@contextlib.contextmanager
def restricted(device: torch.device, power: int) -> Iterator[Tensor]:
    """Restrict plans to clusters of ``2 ** power`` blocks within the context; yields the resulting limits."""
    like, most = torch.empty(0, device=device), torch.iinfo(torch.int64).max
    try:
        yield torch.ops.ser_fast_cuda.gru_restrict(
            like, torch.tensor([most, *(most if place == power else 0 for place in range(4))])
        )
    finally:
        torch.ops.ser_fast_cuda.gru_restrict(like, torch.tensor([most] * 5))


def paths(case: Case, device: torch.device, backends: Sequence[str]) -> dict[str, Callable]:
    """Return the call of a case on each of our backends that runs its kernel, and on torch's path, by name."""
    dtype, switch, _ = PRECISIONS[case.precision]
    allow(switch)
    make = {"gru": _gru, "attention_pool": _pool, "power_spectrogram": _spectrogram}[case.op]
    ours, theirs = make(case, device, dtype)
    if case.op == "gru":
        backends = [name for name in backends if fits(name, dtype, case.hidden_size, device.index)]
    return {name: by(name, ours) for name in backends} | {"torch": theirs}


def _gru(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Callable, Callable]:
    frames, batch, directions, hidden = case.shape
    theirs = nn.GRU(WIDTH, hidden, bidirectional=directions == 2, device=device, dtype=dtype)
    ours = GRU(WIDTH, hidden, bidirectional=directions == 2, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(frames, batch, WIDTH, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(frames, batch, directions * hidden, device=device, dtype=dtype)
    return tuple(
        step(case.mode, lambda layer=layer: layer(x)[0], [x, *layer.parameters()], grad) for layer in (ours, theirs)
    )


def _pool(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Callable, Callable]:
    frames, batch, width = case.shape
    h = torch.randn(batch, frames, width, device=device, dtype=dtype, requires_grad=True)
    w = (torch.randn(width, device=device) / width**0.5).to(dtype).requires_grad_()
    grad = torch.randn(batch, width, device=device, dtype=dtype)
    calls = attention_pool.attention_pool, attention_pool.reference
    return tuple(step(case.mode, lambda call=call: call(h, w)[0], [h, w], grad) for call in calls)


def _spectrogram(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Callable, Callable]:
    frames, batch = case.shape
    wave = torch.randn(batch, WINDOW + HOP * (frames - 1), device=device, dtype=dtype)
    given = wave, torch.hamming_window(WINDOW, device=device, dtype=dtype), N_FFT, HOP
    return (
        step(case.mode, lambda: power_spectrogram.power_spectrogram(*given, (0, BINS)), [wave], None),
        step(case.mode, lambda: power_spectrogram.reference(*given, 0, BINS), [wave], None),
    )

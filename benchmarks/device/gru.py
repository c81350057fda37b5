"""Parts `recurrence`, `plans` and `gru`: the GRU recurrence alone, by cluster size, and layers against cuDNN."""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from bench_gru import modules
from harness import EMODB_FRAMES, check, step
from torch import Tensor, nn

import ser_fast.ops.gru
from device.bench import Bench, Case, precisions
from ser_fast import backends
from ser_fast.backends import dispatch, info
from ser_fast.models.peers import packed, reference
from ser_fast.tuning import cases
from ser_fast.tuning.checks import PRECISIONS, allow

HIDDEN = (128, 256, 512, 64)
RECURRENCE, PLANNED = (1000, 64), (300, 64)  # T and B
LAYERS = [(64, 1000, 401), (32, 300, 128)]  # B, T and I
CORNERS = [(1, 100, 128), (128, 50, 128)]  # cases that favour cuDNN: one row, and a short batch of many rows
NOT_ON_CHIP = "W_hh does not fit on the chip, so torch's path runs"
MORE = [(64, 300, 401), (32, 1000, 128)]


def fits(ours: str, dtype: torch.dtype, hidden: int, streams: bool) -> bool:
    """Return whether this backend runs its own kernel: W_hh fits on the chip or may be streamed from memory."""
    return (streams and ours == "ours, triton") or cases.fits(ours.removeprefix("ours, "), dtype, hidden, None)


def recurrence(bench: Bench) -> list[Case]:
    """Time the recurrence without the input projection, in microseconds per time step.

    One backend after the other, since compiling the Triton kernels takes longer than timing them.
    """
    hiddens, sizes = ((16,), (5, 3)) if bench.rehearse else (HIDDEN, RECURRENCE)
    return [
        Case(
            f"{precision} T={sizes[0]} B={sizes[1]} D=2 H={hidden} reset_after={reset_after}, {ours}",
            partial(recurrence_case, bench, ours, precision, *sizes, hidden, reset_after),
        )
        for ours in bench.ours(lambda: None)
        for reset_after, hidden, precision in itertools.product((True, False), hiddens, precisions(bench))
    ]


def recurrence_case(
    bench: Bench, ours: str, precision: str, frames: int, batch: int, hidden: int, reset_after: bool
) -> dict:
    """Time the recurrence of one size on one backend."""
    dtype, switch, tolerance = PRECISIONS[precision]
    allow(switch)
    if not fits(ours, dtype, hidden, streams=True):
        return {"left out": {ours: NOT_ON_CHIP}}
    bench.ours(lambda: None)[ours]()
    gx = torch.randn(frames, batch, 2, 3 * hidden, device=bench.device, dtype=dtype)
    w_hh = torch.randn(2, 3 * hidden, hidden, device=bench.device, dtype=dtype) / hidden**0.5
    found = compare_op(bench, gx, w_hh, reset_after, tolerance)
    about = {"op": "gru", "backend": ours.removeprefix("ours, "), "precision": precision, "hidden_size": hidden}
    return found | about | {"tolerance": tolerance}


def compare_op(bench: Bench, gx: Tensor, w_hh: Tensor, reset_after: bool, tolerance: float) -> dict:
    """Time the op in inference, forward and backward, after checking 16 frames against the reference."""
    op, op_backward, few = torch.ops.ser_fast.gru, torch.ops.ser_fast.gru_backward, gx[:16]
    exact = ser_fast.ops.gru.reference(few.double(), w_hh.double(), None, None, None, reset_after, True)
    forward = functools.cache(lambda: op(gx, w_hh, None, None, None, reset_after, True))

    def backward() -> tuple:
        y, h_n, gates = forward()
        return op_backward(y, h_n, y, gates, w_hh, None, None, reset_after)

    def matches() -> float:
        y, h_n, gates = found = op(few, w_hh, None, None, None, reset_after, True)
        error = check("outputs", found, exact, tolerance)
        given = y, h_n, y, gates, w_hh
        wide = (tensor.double() for tensor in given)
        exact_grads = ser_fast.ops.gru.reference_backward(*wide, None, None, reset_after)
        grads = op_backward(*given, None, None, reset_after)
        check("gradients", *zip(*(pair for pair in zip(grads, exact_grads) if pair[0].numel())), 2 * tolerance)
        return error

    steps = {
        "inference": lambda: op(gx, w_hh, None, None, None, reset_after, False),
        "forward": lambda: op(gx, w_hh, None, None, None, reset_after, True),
        "backward": backward,
    }
    # The op launches only two kernels, so a graph would not be faster.
    found = bench.compare(steps, dict.fromkeys(steps, matches), graphs=False)
    return found | {"us a step": {way: 1e6 * value / len(gx) for way, value in found["seconds"].items()}}


def plans(bench: Bench) -> list[Case]:
    """Time the recurrence on clusters of 1 to 8 blocks, to tune the constants of the plan's estimate."""
    hiddens, sizes = ((16,), (5, 3)) if bench.rehearse else (HIDDEN, PLANNED)
    return [
        Case(
            f"{precision} T={sizes[0]} B={sizes[1]} D=2 H={hidden}, clusters of {1 << power}",
            partial(plan_case, bench, precision, *sizes, hidden, power),
        )
        for hidden, precision, power in itertools.product(hiddens, precisions(bench), range(4))
    ]


def plan_case(bench: Bench, precision: str, frames: int, batch: int, hidden: int, power: int) -> dict:
    """Time the recurrence on clusters of ``2 ** power`` blocks, beside the plan's estimate."""
    dtype, switch, tolerance = PRECISIONS[precision]
    allow(switch)
    shape, product = (frames, batch, 2, hidden), dispatch.gru_product(dtype)
    gx = torch.randn(frames, batch, 2, 3 * hidden, device=bench.device, dtype=dtype)
    w_hh = torch.randn(2, 3 * hidden, hidden, device=bench.device, dtype=dtype) / hidden**0.5
    with restricted(bench, power) as limits:
        estimates = {way: info.gru_plan(limits, shape, product, way == "backward") for way in ("forward", "backward")}
        if None in estimates.values():
            return {"fits": False}
        if not bench.rehearse:
            backends.use("cuda")
        found = compare_op(bench, gx, w_hh, True, tolerance)
    estimated = {f"{way}, estimated": plan["step"] for way, plan in estimates.items()}
    return found | {"us a step": found["us a step"] | estimated}


@contextlib.contextmanager
def restricted(bench: Bench, power: int) -> Iterator[Tensor]:
    """Restrict plans to clusters of ``2 ** power`` blocks within the context; yields the resulting limits."""
    if bench.rehearse:
        whole = info.KNOWN_GPUS["H100"]
        yield torch.tensor([whole[0], *(count if place == power else 0 for place, count in enumerate(whole[1:]))])
        return
    with cases.restricted(bench.device, power) as limits:
        yield limits


def gru(bench: Bench) -> list[Case]:
    """Time GRU layers with input projection, dense and ragged; the most important cases come first."""
    if bench.rehearse:
        sizes = [(3, 5, 8, 16, 2), (2, 4, 8, 16, 1)]
        return [gru_case(bench, *size, "float32", mode) for size in sizes for mode in ("training", "inference")]
    names = precisions(bench)
    ordered = [
        *itertools.product(LAYERS, HIDDEN, (2,), names, ("training",)),
        *itertools.product(LAYERS[:1], HIDDEN, (2,), names, ("inference",)),
        *itertools.product(CORNERS, HIDDEN, (2,), names[:2], ("training", "inference")),
        *itertools.product(LAYERS[:1], HIDDEN, (1,), names, ("training",)),
        *itertools.product(MORE, HIDDEN, (2,), names, ("training",)),
    ]
    return [
        gru_case(bench, *size, hidden, directions, precision, mode)
        for size, hidden, directions, precision, mode in ordered
    ]


def left(out: dict[str, str], found: dict) -> dict:
    """Add to a result the calls that were left out, with the reasons."""
    return found | ({"left out": found.get("left out", {}) | out} if out else {})


def gru_case(
    bench: Bench, batch: int, frames: int, width: int, hidden: int, directions: int, precision: str, mode: str
) -> Case:
    """Return the case of one layer size."""
    name = f"{precision} B={batch} T={frames} I={width} H={hidden} D={directions}, {mode}"
    return Case(name, lambda: Layers(bench, batch, frames, width, hidden, directions, precision, mode).compare(name))


class Layers:
    """GRU in both forms, nn.GRU and nn.LSTM of one size, with a batch."""

    def __init__(self, bench, batch, frames, width, hidden, directions, precision, mode):
        dtype, switch, self.tolerance = PRECISIONS[precision]
        allow(switch)
        self.bench, self.mode = bench, mode
        self.about = {
            "op": "gru",
            "precision": precision,
            "hidden_size": hidden,
            "mode": mode,
            "batch": batch,
            "frames": frames,
            "width": width,
            "directions": directions,
            "tolerance": self.tolerance,
        }
        self.layers = {
            name: layer.to(bench.device, dtype) for name, layer in modules(width, hidden, directions).items()
        }
        self.x = torch.randn(batch, frames, width, device=bench.device, dtype=dtype, requires_grad=mode == "training")
        self.grad = torch.randn(batch, frames, directions * hidden, device=bench.device, dtype=dtype)
        self.lengths = (torch.tensor(EMODB_FRAMES) * frames // max(EMODB_FRAMES)).repeat(4)[:batch]

    def compare(self, case: str) -> list[dict]:
        """Time the dense batch and, for bidirectional layers, the ragged one."""
        found = [self.padded()]
        if len(self.x) > 1 and self.about["directions"] == 2:
            found.append({"case": f"{case}, ragged"} | self.ragged())
        return found

    def padded(self) -> dict:
        """Time all layers on full rows."""
        steps, checks, left_out = {}, {}, {}
        for form in ("ours", "ours, reset_after=False"):
            layer, wanted = self.layers[form], self.exact(self.layers[form])
            for ours, call in self.bench.ours(lambda layer=layer: layer(self.x)[0]).items():
                name = ours + form.removeprefix("ours")
                if not self.fits(ours, streams=not layer.reset_after):
                    left_out[name] = NOT_ON_CHIP
                    continue
                steps[name] = self.step(layer, call)
                checks[name] = partial(self.check, layer, call, wanted)
        for peer in ("nn.GRU", "nn.LSTM"):
            layer = self.layers[peer]
            steps[peer] = self.step(layer, lambda layer=layer: layer(self.x)[0])
        return left(left_out, self.bench.compare(steps, checks, **self.about))

    def ragged(self) -> dict:
        """Time ours with lengths against torch's layers, packed and padded."""
        ours, on_device = self.layers["ours"], self.lengths.to(self.bench.device)
        wanted = self.exact(ours, on_device)
        steps, checks, left_out = {}, {}, {}
        for name, call in self.bench.ours(lambda: ours(self.x, lengths=on_device)[0]).items():
            if not self.fits(name, streams=False):
                left_out[name] = NOT_ON_CHIP
                continue
            steps[name] = self.step(ours, call)
            checks[name] = partial(self.check, ours, call, wanted, on_device)
        for peer in ("nn.GRU", "nn.LSTM"):
            layer = self.layers[peer]
            steps[f"{peer}, packed"] = self.step(layer, lambda layer=layer: packed(layer, self.x, self.lengths))
            steps[f"{peer}, padded"] = self.step(layer, lambda layer=layer: layer(self.x)[0])
        return left(left_out, self.bench.compare(steps, checks, **self.about | {"ragged": True}))

    def fits(self, ours: str, streams: bool) -> bool:
        """Return :func:`fits` for these layers."""
        return fits(ours, self.x.dtype, self.about["hidden_size"], streams)

    def step(self, layer: nn.Module, call: Callable[[], Tensor]) -> Callable:
        """Return ``call`` as an inference or training step."""
        return step(self.mode, call, [self.x, *layer.parameters()], self.grad)

    def few(self, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return 16 frames, their gradient and lengths: the backward of the reference takes time quadratic in T."""
        x, grad = self.x.detach()[:, :16].clone().requires_grad_(), self.grad[:, :16]
        return x, grad, None if lengths is None else lengths.clamp(max=x.shape[1])

    def exact(self, layer: nn.Module, lengths: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Return the float64 outputs of all frames, and the outputs and gradients of the first 16."""
        exact = copy.deepcopy(layer).double()
        with torch.no_grad():
            outputs = reference(exact, self.x.detach().double(), lengths)
        x, grad, lengths = self.few(lengths)
        x = x.detach().double().requires_grad_()
        first = step("training", lambda: reference(exact, x, lengths), [x, *exact.parameters()], grad.double())
        return outputs, first()

    def check(self, layer: nn.Module, call: Callable, wanted: tuple, lengths: Tensor | None = None) -> float:
        """Check outputs and gradients; return the largest error of ``call``, the layer on all frames."""
        outputs, gradients = wanted
        with torch.no_grad():
            error = check("outputs", call(), outputs, self.tolerance)
        x, grad, lengths = self.few(lengths)
        first = step("training", lambda: layer(x, lengths=lengths)[0], [x, *layer.parameters()], grad)
        check("gradients", first(), gradients, 2 * self.tolerance)
        return error

"""GRU and GRUCell against torch's, against nn.LSTM and, in inference, against other engines.

The floor is the operations of the input projection and the recurrence, 2 B T D 3H (I + H) in inference and three
times that in training, at the rate of a large float32 matrix product. Ragged batches count valid frames only.
"""

import copy

import engines
import pytest
import torch
from harness import EMODB_FRAMES, MODES, check, step
from torch import Tensor, nn

import ser_fast
from ser_fast.models.peers import packed, reference

DENSE = [(64, 200, 128, 128, 1), (32, 300, 401, 128, 2), (64, 300, 256, 256, 2), (64, 300, 128, 512, 1)]
SWEEPS = {"T": (50, 100, 200, 400, 800), "B": (1, 4, 16, 64, 128), "H": (32, 64, 128, 256, 512)}
MIDDLE = {"T": 200, "B": 32, "H": 128}  # the sizes that a sweep keeps fixed
TOLERANCE = {"inference": 1e-5, "training": 1e-4}
HIDDEN = (64, 128, 256, 512)

sizes = pytest.mark.parametrize("batch,frames,width,hidden,directions", DENSE)
modes = pytest.mark.parametrize("mode", MODES)


def modules(width: int, hidden: int, directions: int) -> dict[str, nn.Module]:
    """Return the four layers by name; ours and nn.GRU have the same weights."""
    options = {"batch_first": True, "bidirectional": directions == 2}
    ours, theirs = ser_fast.GRU(width, hidden, **options), nn.GRU(width, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    return {
        "ours": ours,
        "nn.GRU": theirs,
        "nn.LSTM": nn.LSTM(width, hidden, **options),
        "ours, reset_after=False": ser_fast.GRU(width, hidden, reset_after=False, **options),
    }


def operations(frames: int, width: int, hidden: int, directions: int, mode: str) -> int:
    """Return the operations of a layer over ``frames`` frames in total."""
    return (3 if mode == "training" else 1) * 2 * frames * directions * 3 * hidden * (width + hidden)


def compare_dense(compare, batch, frames, width, hidden, directions, mode, names=None, **extra) -> None:
    """Time the layers in ``names`` on a batch without padding, after checking; by default all, and other engines."""
    layers = modules(width, hidden, directions)
    x = torch.randn(batch, frames, width, requires_grad=mode == "training")
    grad = torch.randn(batch, frames, directions * hidden)
    steps = {
        name: step(mode, lambda layer=layer: layer(x)[0], [x, *layer.parameters()], grad)
        for name, layer in layers.items()
        if names is None or name in names
    }
    case = f"B={batch} T={frames} I={width} H={hidden} D={directions}, {mode}"
    error = check(case, steps["ours"](), steps["nn.GRU"](), TOLERANCE[mode])
    if "ours, reset_after=False" in steps:
        # 16 frames only: the backward of the reference takes time quadratic in T.
        paper, few = layers["ours, reset_after=False"], slice(16)
        inputs = [x, *paper.parameters()]
        found = step(mode, lambda: paper(x[:, few])[0], inputs, grad[:, few])
        exact = step(mode, lambda: reference(paper, x[:, few]), inputs, grad[:, few])
        check(f"{case}, reset_after=False", found(), exact(), TOLERANCE[mode])
    if names is None and mode == "inference":
        extra |= add_engines(case, steps, layers["nn.GRU"], x)
    work = operations(batch * frames, width, hidden, directions, mode) if batch > 1 else None
    compare(case, steps.pop("ours"), steps, operations=work, error=error, tolerance=TOLERANCE[mode], **extra)


def add_engines(case: str, steps: dict, layer: nn.GRU, x: Tensor, lengths: Tensor | None = None) -> dict:
    """Add the calls of other engines to those of a case, after checking them; return the engines left out."""
    exact = steps["ours"]()
    for name, engine in engines.grus(layer, x, lengths).items():
        check(f"{case}, {name}", [engine.read(engine.call())], exact, TOLERANCE["inference"])
        steps[name] = engine.call
    return {"left out": engines.missing(list(engines.GRUS))}


@modes
@sizes
def bench_dense(compare, batch, frames, width, hidden, directions, mode):
    """GRU, batches without padding."""
    compare_dense(compare, batch, frames, width, hidden, directions, mode)


@modes
def bench_ragged(compare, mode):
    """GRU, 32 utterances of Emo-DB's lengths.

    "Padded" also computes the padding, without a mask; the backward direction then starts in the padding.
    """
    lengths, width, hidden = torch.tensor(EMODB_FRAMES), 401, 128
    layers = modules(width, hidden, 2)
    x = torch.randn(len(lengths), max(EMODB_FRAMES), width, requires_grad=mode == "training")
    grad = torch.randn(len(lengths), max(EMODB_FRAMES), 2 * hidden)
    forwards = {"ours": (layers["ours"], lambda: layers["ours"](x, lengths=lengths)[0])}
    for name in ("nn.GRU", "nn.LSTM"):
        layer = layers[name]
        forwards[f"{name}, packed"] = layer, lambda layer=layer: packed(layer, x, lengths)
        forwards[f"{name}, padded"] = layer, lambda layer=layer: layer(x)[0]
    steps = {name: step(mode, forward, [x, *layer.parameters()], grad) for name, (layer, forward) in forwards.items()}
    case = f"B=32 T={min(EMODB_FRAMES)}..{max(EMODB_FRAMES)} I={width} H={hidden} D=2, {mode}"
    error = check(case, steps["ours"](), steps["nn.GRU, packed"](), TOLERANCE[mode])
    extra = add_engines(case, steps, layers["nn.GRU"], x, lengths) if mode == "inference" else {}
    work = operations(sum(EMODB_FRAMES), width, hidden, 2, mode)
    compare(case, steps.pop("ours"), steps, operations=work, error=error, tolerance=TOLERANCE[mode], **extra)


@modes
@pytest.mark.parametrize("batch,frames,width,hidden,directions", DENSE)
def bench_autocast(compare, batch, frames, width, hidden, directions, mode):
    """GRU under bfloat16 autocast, against its own float32."""
    ours = modules(width, hidden, directions)["ours"]
    x = torch.randn(batch, frames, width, requires_grad=mode == "training")
    grad = torch.randn(batch, frames, directions * hidden)

    def autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours(x)[0].float()

    low = step(mode, autocast, [x, *ours.parameters()], grad)
    full = step(mode, lambda: ours(x)[0], [x, *ours.parameters()], grad)
    case, tolerance = f"B={batch} T={frames} I={width} H={hidden} D={directions}, {mode}", 5e-2
    error = check(case, low(), full(), tolerance)
    compare(case, low, {"ours, float32": full}, error=error, tolerance=tolerance, dtype="bfloat16 autocast")


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("hidden", HIDDEN)
def bench_narrow(compare, hidden, weights):
    """GRU with int8 weights or in bfloat16, one utterance at a time, against its own float32."""
    ours = modules(128, hidden, 1)["ours"].eval()
    narrow, x = copy.deepcopy(ours), torch.randn(1, 100, 128)
    if weights == "int8":
        ser_fast.quantize(narrow)
    else:
        narrow.bfloat16()
    given = x if weights == "int8" else x.bfloat16()
    low = step("inference", lambda: narrow(given)[0].float(), [], None)
    full = step("inference", lambda: ours(x)[0], [], None)
    case, tolerance = f"B=1 T=100 I=128 H={hidden} D=1, inference", 5e-2
    error = check(f"{case}, {weights}", low(), full(), tolerance)
    compare(case, low, {"ours, float32": full}, error=error, tolerance=tolerance, dtype=weights)


@pytest.mark.parametrize("batch,directions", [(1, 1), (1, 2), (4, 1)])
@pytest.mark.parametrize("hidden", HIDDEN)
def bench_few(compare, batch, directions, hidden):
    """GRU, one and four utterances at a time."""
    compare_dense(compare, batch, 100, 128, hidden, directions, "inference")


@pytest.mark.parametrize("hidden", HIDDEN)
def bench_one_step(compare, hidden):
    """GRU, one step of one stream, T = 1."""
    compare_dense(compare, 1, 1, 128, hidden, 1, "inference")


@pytest.mark.parametrize("frames", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("hidden", [64, 256, 512])
def bench_short(compare, hidden, frames):
    """GRU, training on few steps, where the fewest that our kernels run follow a rule."""
    compare_dense(compare, 8, frames, hidden, hidden, 1, "training", ("ours", "nn.GRU"))


@pytest.mark.parametrize("hidden", HIDDEN)
def bench_cell(compare, hidden):
    """GRUCell, 100 steps of one stream."""
    ours, theirs = ser_fast.GRUCell(128, hidden), nn.GRUCell(128, hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(100, 1, 128)

    def stream(cell: nn.Module) -> Tensor:
        h = torch.zeros(1, hidden)
        with torch.inference_mode():
            for frame in x:
                h = cell(frame, h)
        return h

    case = f"B=1 I=128 H={hidden}, inference"
    error = check(case, stream(ours), stream(theirs), TOLERANCE["inference"])
    peers = {"nn.GRUCell": lambda: stream(theirs)}
    compare(case, lambda: stream(ours), peers, error=error, tolerance=TOLERANCE["inference"])


@modes
@pytest.mark.parametrize("axis,value", [(axis, value) for axis, values in SWEEPS.items() for value in values])
def bench_sweep(compare, axis, value, mode):
    """GRU, sweeps over T, B and H."""
    size = MIDDLE | {axis: value}
    names = ("ours", "nn.GRU", "nn.LSTM")
    compare_dense(compare, size["B"], size["T"], 128, size["H"], 1, mode, names, sweep=[axis, value, mode])

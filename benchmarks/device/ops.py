"""Every op against cuDNN, torch, torchaudio, torch.compile and scaled dot-product attention.

Nothing is timed that has not just matched its reference.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from functools import partial

import torch
from bench_attention_pool import eager, one_query
from bench_gru import modules
from bench_power_spectrogram import BINS, HOP, N_FFT, WINDOW, chain, error_against_float64, torchaudio_chain
from harness import EMODB_FRAMES, check, step
from torch import Tensor, nn

import ser_fast.gru
from device.bench import Bench, Case, by
from ser_fast.functional import attention_pool, power_spectrogram
from ser_fast.models.peers import packed, reference

# What torch's switch for RNNs says, and the tolerance of outputs: float32 with tf32 on and off, then half precision.
PRECISIONS = {
    "tf32": (torch.float32, "tf32", 5e-3),
    "bfloat16": (torch.bfloat16, "ieee", 5e-2),
    "float32": (torch.float32, "ieee", 1e-5),
    "float16": (torch.float16, "ieee", 1e-2),
}
HIDDEN = (128, 256, 512, 64)


def precisions(bench: Bench) -> list[str]:
    return [name for name, (dtype, *_) in PRECISIONS.items() if not bench.rehearse or dtype != torch.float16]


def allow(switch: str) -> None:
    """tf32, or not, in cuDNN's recurrences, in ours, and in the products beside them."""
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = switch


def recurrence(bench: Bench) -> list[Case]:
    """The recurrence alone, without its input's projection: microseconds a time step."""
    hiddens, sizes = ((16,), (5, 3)) if bench.rehearse else (HIDDEN, (1000, 64))
    return [
        Case(
            f"{precision} T={sizes[0]} B={sizes[1]} D=2 H={hidden} reset_after={reset_after}",
            partial(recurrence_case, bench, precision, *sizes, hidden, reset_after),
        )
        for reset_after, hidden, precision in itertools.product((True, False), hiddens, precisions(bench))
    ]


def recurrence_case(bench: Bench, precision: str, frames: int, batch: int, hidden: int, reset_after: bool) -> dict:
    dtype, switch, tolerance = PRECISIONS[precision]
    allow(switch)
    gx = torch.randn(frames, batch, 2, 3 * hidden, device=bench.device, dtype=dtype)
    w_hh = torch.randn(2, 3 * hidden, hidden, device=bench.device, dtype=dtype) / hidden**0.5
    ops, few = torch.ops.ser_fast, gx[:16]
    truth = ser_fast.gru.reference(few.double(), w_hh.double(), None, None, None, reset_after, True)
    steps, checks = {}, {}
    for name, chosen in bench.ours(lambda: None).items():
        forward = functools.cache(lambda: ops.gru(gx, w_hh, None, None, None, reset_after, True))

        def backward(forward=forward) -> tuple:
            y, h_n, gates = forward()
            return ops.gru_backward(y, h_n, y, gates, w_hh, None, None, reset_after)

        ways = {
            "inference": lambda: ops.gru(gx, w_hh, None, None, None, reset_after, False),
            "forward": lambda: ops.gru(gx, w_hh, None, None, None, reset_after, True),
            "backward": backward,
        }
        steps |= {
            f"{name}, {way}": call if bench.rehearse else by(name.removeprefix("ours, "), call)
            for way, call in ways.items()
        }

        def matches(chosen=chosen) -> float:
            chosen()
            return check(
                "the first frames", ops.gru(few, w_hh, None, None, None, reset_after, True), truth, tolerance
            )

        checks |= {f"{name}, {way}": matches for way in ways}
    about = {"op": "gru", "precision": precision, "hidden_size": hidden, "tolerance": tolerance}
    found = bench.race(steps, checks, graphs=False, **about)  # two launches for a thousand steps
    return found | {"us a step": {name: 1e6 * value / frames for name, value in found["seconds"].items()}}


def gru(bench: Bench) -> list[Case]:
    """GRU layers with their input's projection, padded, and ragged against packed ones; what matters comes first."""
    if bench.rehearse:
        sizes = [(3, 5, 8, 16, 2), (2, 4, 8, 16, 1)]
        return [gru_case(bench, *size, "float32", mode) for size in sizes for mode in ("training", "inference")]
    names = precisions(bench)
    batches = [(64, 1000, 401), (32, 300, 128)]
    ordered = [
        *itertools.product(batches, HIDDEN, (2,), names, ("training",)),
        *itertools.product(batches[:1], HIDDEN, (2,), names, ("inference",)),
        # Where cuDNN, or launching, has its best chances.
        *itertools.product([(1, 100, 128), (128, 50, 128)], HIDDEN, (2,), names[:2], ("training", "inference")),
        *itertools.product(batches[:1], HIDDEN, (1,), names, ("training",)),
        *itertools.product([(64, 300, 401), (32, 1000, 128)], HIDDEN, (2,), names, ("training",)),
    ]
    return [
        gru_case(bench, *size, hidden, directions, precision, mode)
        for size, hidden, directions, precision, mode in ordered
    ]


def gru_case(
    bench: Bench, batch: int, frames: int, width: int, hidden: int, directions: int, precision: str, mode: str
) -> Case:
    name = f"{precision} B={batch} T={frames} I={width} H={hidden} D={directions}, {mode}"
    return Case(name, lambda: Layers(bench, batch, frames, width, hidden, directions, precision, mode).race(name))


class Layers:
    """Ours in both forms, nn.GRU and nn.LSTM of one size, on one batch."""

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

    def race(self, case: str) -> list[dict]:
        found = [self.padded()]
        if len(self.x) > 1 and self.about["directions"] == 2:
            found.append({"case": f"{case}, ragged"} | self.ragged())
        return found

    def padded(self) -> dict:
        steps, checks = {}, {}
        for form in ("ours", "ours, reset_after=False"):
            layer, wanted = self.layers[form], self.truth(self.layers[form])
            for name, call in self.bench.ours(lambda layer=layer: layer(self.x)[0]).items():
                name += form.removeprefix("ours")
                steps[name] = self.step(layer, call)
                checks[name] = partial(self.check, layer, call, wanted)
        for peer in ("nn.GRU", "nn.LSTM"):
            layer = self.layers[peer]
            steps[peer] = self.step(layer, lambda layer=layer: layer(self.x)[0])
        return self.bench.race(steps, checks, **self.about)

    def ragged(self) -> dict:
        ours, on_device = self.layers["ours"], self.lengths.to(self.bench.device)
        with torch.no_grad():
            wanted = reference(copy.deepcopy(ours).double(), self.x.detach().double(), on_device)
        steps, checks = {}, {}
        for name, call in self.bench.ours(lambda: ours(self.x, lengths=on_device)[0]).items():
            steps[name] = self.step(ours, call)
            checks[name] = lambda call=call: check("ragged", call(), wanted, self.tolerance)
        for peer in ("nn.GRU", "nn.LSTM"):
            layer = self.layers[peer]
            steps[f"{peer}, packed"] = self.step(layer, lambda layer=layer: packed(layer, self.x, self.lengths))
            steps[f"{peer}, padded"] = self.step(layer, lambda layer=layer: layer(self.x)[0])
        return self.bench.race(steps, checks, **self.about | {"ragged": True})

    def step(self, layer: nn.Module, call: Callable[[], Tensor]) -> Callable:
        return step(self.mode, call, [self.x, *layer.parameters()], self.grad)

    def few(self) -> tuple[Tensor, Tensor]:
        """The first frames and their gradient: the reference's backward takes time quadratic in T."""
        return self.x.detach()[:, :16].clone().requires_grad_(), self.grad[:, :16]

    def truth(self, layer: nn.Module) -> tuple[Tensor, tuple]:
        """In float64: outputs of all frames, and outputs and gradients of the first."""
        exact = copy.deepcopy(layer).double()
        with torch.no_grad():
            outputs = reference(exact, self.x.detach().double())
        x, grad = (tensor.detach().double().requires_grad_() for tensor in self.few())
        return outputs, step("training", lambda: reference(exact, x), [x, *exact.parameters()], grad.detach())()

    def check(self, layer: nn.Module, call: Callable[[], Tensor], wanted: tuple[Tensor, tuple]) -> float:
        outputs, gradients = wanted
        with torch.no_grad():
            error = check("outputs", call(), outputs, self.tolerance)  # which also chooses the backend
        x, grad = self.few()
        found = step("training", lambda: layer(x)[0], [x, *layer.parameters()], grad)()
        check("gradients", found, gradients, 2 * self.tolerance)
        return error


def pool(bench: Bench) -> list[Case]:
    """Attention pooling, and the share of a copy's bandwidth it reaches."""
    sizes = [(3, 20, 16)] if bench.rehearse else [(64, 1000, 512), (64, 300, 256)]
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    source = torch.randn((1 << 20 if bench.rehearse else 1 << 30) // 4, device=bench.device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / bench.time(lambda: target.copy_(source))
    return [
        Case(
            f"{name} B={size[0]} T={size[1]} D={size[2]}, {mode}",
            partial(pool_case, bench, size, name, dtype, mode, bandwidth),
        )
        for (name, dtype), size, mode in itertools.product(dtypes.items(), sizes, ("training", "inference"))
    ]


def pool_case(
    bench: Bench, size: tuple[int, int, int], precision: str, dtype: torch.dtype, mode: str, bandwidth: float
) -> dict:
    batch, frames, width = size
    h = torch.randn(batch, frames, width, device=bench.device, dtype=dtype, requires_grad=mode == "training")
    w = (torch.randn(width, device=bench.device) / width**0.5).to(dtype).requires_grad_(mode == "training")
    grad = torch.randn(batch, width, device=bench.device, dtype=dtype)
    calls = bench.ours(lambda: attention_pool(h, w)[0]) | {
        "eager torch": lambda: eager(h, w, None),
        "one-query SDPA": lambda: one_query(h, w, None),
    }
    if not bench.rehearse:
        compiled = torch.compile(eager, dynamic=False)
        calls["torch.compile"] = lambda: compiled(h, w, None)
    steps = {name: step(mode, call, [h, w], grad) for name, call in calls.items()}
    wide = [tensor.detach().double().requires_grad_(mode == "training") for tensor in (h, w)]
    truth = step(mode, lambda: eager(*wide, None), wide, grad.double())()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    names = bench.ours(lambda: None)
    checks = {name: lambda name=name: check("all", steps[name](), truth, tolerance) for name in names}
    found = bench.race(steps, checks, op="attention_pool", precision=precision, tolerance=tolerance, mode=mode)
    moved = (3 if mode == "training" else 1) * h.nbytes
    shares = {name: 100 * moved / value / bandwidth for name, value in found["seconds"].items() if "ours" in name}
    return found | {"% of the copy bandwidth": shares, "copy, bytes a second": bandwidth}


def spectrogram(bench: Bench) -> list[Case]:
    """The normalised power spectrogram, whatever the tf32 switches say."""
    sizes = [(2, 1)] if bench.rehearse else [(64, 10), (32, 3)]
    return [
        Case(f"{batch} x {seconds} s, {what}", partial(spectrogram_case, bench, batch, seconds, what == "normalised"))
        for what in ("normalised", "power")
        for batch, seconds in sizes
    ]


def spectrogram_case(bench: Bench, batch: int, seconds: int, normalised: bool) -> dict:
    allow("tf32")
    wave = torch.randn(batch, 16000 * seconds, device=bench.device)
    window = torch.hamming_window(WINDOW, device=bench.device)
    plain = chain(wave, window, None, None)
    mean, std = (plain.mean((0, 1)), plain.std((0, 1))) if normalised else (None, None)
    calls = bench.ours(
        lambda: power_spectrogram(wave, window, N_FFT, HOP, (0, BINS), mean=mean, std=std, center=True)
    ) | {"torch.stft chain": lambda: chain(wave, window, mean, std)}
    if (transform := torchaudio_chain(mean, std)) is not None:
        calls["torchaudio"] = lambda: transform(wave)
    wanted = chain(wave, window, mean, std)

    def matches(call: Callable) -> float:
        found = call()
        check("all", found, wanted, 1e-5)
        return error_against_float64(found, (wave, window, mean, std))

    checks = {name: partial(matches, call) for name, call in calls.items()}
    found = bench.race(calls, checks, op="power_spectrogram", precision="float32", tolerance=1e-5)
    frames = batch * plain.shape[1]
    return found | {"ns a frame": {name: 1e9 * value / frames for name, value in found["seconds"].items()}}

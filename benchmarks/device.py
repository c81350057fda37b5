"""One run on a GPU, meant for 10 minutes: ``python benchmarks/device.py --out results.json [--part tests]``.

The parts are the kernels' tests in all dtypes, compute-sanitizer on small cases, the recurrence's time per step, and
the benchmarks of each op, CUDA C++ and Triton, against cuDNN's GRU and LSTM, torch.stft, torchaudio, eager torch,
torch.compile and scaled dot-product attention, called one by one and replayed as CUDA graphs. Nothing is timed that
has not just matched its reference; a part that fails is recorded as failed and the others run.
The file is rewritten after every part: an interrupted run keeps what it has, and a repeated part replaces its own.
``--rehearse`` runs the benchmarks at small sizes on the CPU, to try the script itself; its times mean nothing.
"""

import argparse
import copy
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench_attention_pool import eager, one_query
from bench_gru import modules
from bench_power_spectrogram import BINS, HOP, N_FFT, WINDOW, chain, error_against_float64, torchaudio_chain
from harness import EMODB_FRAMES, check, machine, step
from torch import Tensor, nn

import ser_fast.gru
from ser_fast import backends
from ser_fast.functional import attention_pool, power_spectrogram
from ser_fast.models.peers import packed, reference
from ser_fast.run_folder import write_atomically

TESTS = Path(__file__).parents[1] / "tests"
SANITIZED = "import test_gpu as t; t.everything(t.inputs())"
KERNELS = ("cuda", "triton")  # whose kernels are measured, side by side
# float32 with tf32 off and on, then half precision: names, dtypes, torch's switch for RNNs, tolerance of the outputs.
PRECISIONS = {
    "float32": (torch.float32, "ieee", 1e-5),
    "tf32": (torch.float32, "tf32", 5e-3),
    "float16": (torch.float16, "ieee", 1e-2),
    "bfloat16": (torch.bfloat16, "ieee", 5e-2),
}


def by(backend: str, call: Callable) -> Callable:
    """The call on this backend's kernels."""

    def run():
        backends.on_cuda = backend
        return call()

    return run


class Bench:
    """Where to run, at what sizes, and how to time."""

    def __init__(self, rehearse: bool):
        self.rehearse = rehearse
        self.device = "cpu" if rehearse else "cuda"

    def ours(self, call: Callable) -> dict[str, Callable]:
        """The call on the kernels of each backend; a rehearsal knows those of the CPU alone."""
        return {"ours": call} if self.rehearse else {f"ours, {name}": by(name, call) for name in KERNELS}

    def replayed(self, call: Callable) -> Callable:
        """The call as a CUDA graph."""
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def time(self, call: Callable, rounds: int = 20) -> float:
        """Median seconds of a call, by the device's own events after a warm-up."""
        for _ in range(1 if self.rehearse else 5):
            call()
        times = []
        for _ in range(2 if self.rehearse else rounds):
            if self.rehearse:
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def race(self, case: str, steps: dict[str, Callable], **extra) -> dict:
        """Medians of calls that have been checked, one by one and as CUDA graphs, and their ratios to the first."""
        seconds = {}
        for (name, call), way in itertools.product(steps.items(), ("",) if self.rehearse else ("", ", graph")):
            try:
                seconds[name + way] = self.time(self.replayed(call) if way else call)
            except Exception as error:  # a peer that cannot run is left out, and said to be
                if name + way == next(iter(steps)):
                    raise
                extra.setdefault("left out", {})[name + way] = f"{type(error).__name__}: {error}".splitlines()[0]
        ours = next(iter(seconds.values()))
        ratios = {name: value / ours for name, value in seconds.items()}
        print(case, " ".join(f"{name} {1e3 * value:.3f} ms ({ratios[name]:.2f}x)" for name, value in seconds.items()))
        return {"case": case, "seconds": seconds, "ratios": ratios, **extra}


def tests(bench: Bench) -> Iterator[dict]:
    """Every kernel in all dtypes on the device."""
    for files in (["test_native_gru.py", "test_native.py", "test_gpu.py"], ["test_triton.py"]):
        yield run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], seconds=300)


def sanitizer(bench: Bench) -> Iterator[dict]:
    """memcheck, racecheck and synccheck of every kernel."""
    if not shutil.which("compute-sanitizer"):
        raise FileNotFoundError("compute-sanitizer is not on the PATH")
    for backend, tool in itertools.product(KERNELS, ("memcheck", "racecheck", "synccheck")):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", SANITIZED]
        yield run(command, 100, SER_FAST_BACKEND=backend) | {"backend": backend}


def run(command: list[str], seconds: int, **environment: str) -> dict:
    """A command that must succeed: its first words and its last line."""
    result = subprocess.run(
        command, cwd=TESTS, capture_output=True, text=True, timeout=seconds, env=os.environ | environment
    )
    last = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()][-30:]
    if result.returncode:
        raise RuntimeError("\n".join([f"{' '.join(command)} gave {result.returncode}", *last]))
    return {"case": " ".join(command[:4]), "last": last[-1]}


def recurrence(bench: Bench) -> Iterator[dict]:
    """The recurrence alone, without its input's projection: microseconds a time step."""
    hiddens, batch, frames = ((16,), 3, 5) if bench.rehearse else ((64, 128, 256, 512), 64, 1000)
    for precision, hidden, reset_after in itertools.product(precisions(bench), hiddens, (True, False)):
        dtype, switch, tolerance = PRECISIONS[precision]
        torch.backends.cudnn.rnn.fp32_precision = switch
        gx = torch.randn(frames, batch, 2, 3 * hidden, device=bench.device, dtype=dtype)
        w_hh = torch.randn(2, 3 * hidden, hidden, device=bench.device, dtype=dtype) / hidden**0.5
        ops = torch.ops.ser_fast
        few = gx[:16]
        truth = ser_fast.gru.reference(few.double(), w_hh.double(), None, None, None, reset_after, True)
        steps = {}
        for name, run in bench.ours(lambda: None).items():
            run()
            check(
                f"{precision} H={hidden}, {name}",
                ops.gru(few, w_hh, None, None, None, reset_after, True),
                truth,
                tolerance,
            )
            y, h_n, gates = ops.gru(gx, w_hh, None, None, None, reset_after, True)
            backward = (y, h_n, y, gates, w_hh, None, None, reset_after)
            calls = {
                "inference": lambda: ops.gru(gx, w_hh, None, None, None, reset_after, False),  # noqa: B023
                "forward": lambda: ops.gru(gx, w_hh, None, None, None, reset_after, True),  # noqa: B023
                "backward": lambda backward=backward: ops.gru_backward(*backward),  # noqa: B023
            }
            steps |= {f"{name}, {way}": by(backends.on_cuda, call) for way, call in calls.items()}
        case = f"{precision} T={frames} B={batch} D=2 H={hidden} reset_after={reset_after}"
        result = bench.race(case, steps, tolerance=tolerance)
        yield result | {"us a step": {name: 1e6 * value / frames for name, value in result["seconds"].items()}}


def precisions(bench: Bench) -> list[str]:
    return [name for name, (dtype, *_) in PRECISIONS.items() if not bench.rehearse or dtype != torch.float16]


def gru(bench: Bench) -> Iterator[dict]:
    """Bidirectional GRU layers, input projection included: padded, and ragged against packed ones."""
    hiddens, batches = ((16,), (3,)) if bench.rehearse else ((64, 128, 256, 512), (32, 64))
    inputs = [(5, 128)] if bench.rehearse else [(300, 128), (1000, 401)]
    for case in itertools.product(inputs, precisions(bench), hiddens, batches, ("inference", "training")):
        yield from gru_case(bench, *case)


def gru_case(
    bench: Bench, size: tuple[int, int], precision: str, hidden: int, batch: int, mode: str
) -> Iterator[dict]:
    dtype, switch, tolerance = PRECISIONS[precision]
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = switch
    frames, width = size
    layers = {name: layer.to(bench.device, dtype) for name, layer in modules(width, hidden, 2).items()}
    x = torch.randn(batch, frames, width, device=bench.device, dtype=dtype, requires_grad=mode == "training")
    grad = torch.randn(batch, frames, 2 * hidden, device=bench.device, dtype=dtype)
    case = f"{precision} B={batch} T={frames} I={width} H={hidden} D=2, {mode}"
    forwards, chosen = {}, {}
    for layer in ("ours", "ours, reset_after=False"):
        for name, call in bench.ours(lambda layer=layer: layers[layer](x)[0]).items():
            by(backends.on_cuda, call)()
            check_layer(f"{case}, {name}", layers[layer], x.detach(), grad, tolerance)
            forwards[name + layer.removeprefix("ours")] = layers[layer], call
            chosen[name] = backends.select("gru", bench.device, dtype=dtype, hidden_size=hidden)
    for peer in ("nn.GRU", "nn.LSTM"):
        forwards[peer] = layers[peer], lambda layer=layers[peer]: layer(x)[0]
    yield bench.race(case, training_steps(forwards, mode, x, grad), backend=chosen, tolerance=tolerance)

    lengths = (torch.tensor(EMODB_FRAMES) * frames // max(EMODB_FRAMES)).repeat(2)[:batch]
    on_device = lengths.to(bench.device)
    wanted = packed(layers["nn.GRU"], x, lengths)
    forwards = {}
    for name, call in bench.ours(lambda: layers["ours"](x, lengths=on_device)[0]).items():
        check(f"{case}, ragged, {name}", call(), wanted, 2 * tolerance)
        forwards[name] = layers["ours"], call
    for peer in ("nn.GRU", "nn.LSTM"):
        forwards[f"{peer}, packed"] = layers[peer], lambda layer=layers[peer]: packed(layer, x, lengths)
    yield bench.race(f"{case}, ragged", training_steps(forwards, mode, x, grad), backend=chosen, tolerance=tolerance)


def check_layer(case: str, layer: nn.Module, x: Tensor, grad: Tensor, tolerance: float) -> None:
    """Outputs on all frames; gradients on the first, for the reference's backward takes time quadratic in T."""
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        check(case, layer(x)[0], reference(exact, x.double()), tolerance)
    few, wide, grad = x[:, :16].clone().requires_grad_(), x[:, :16].double().requires_grad_(), grad[:, :16]
    found = step("training", lambda: layer(few)[0], [few, *layer.parameters()], grad)
    truth = step("training", lambda: reference(exact, wide), [wide, *exact.parameters()], grad.double())
    check(f"{case}, gradients", found(), truth(), 2 * tolerance)


def training_steps(forwards: dict[str, tuple], mode: str, x: Tensor, grad: Tensor) -> dict[str, Callable]:
    return {name: step(mode, call, [x, *layer.parameters()], grad) for name, (layer, call) in forwards.items()}


def pool(bench: Bench) -> Iterator[dict]:
    """Attention pooling, and the share of a copy's bandwidth it reaches."""
    source = torch.randn((1 << 20 if bench.rehearse else 1 << 30) // 4, device=bench.device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / bench.time(lambda: target.copy_(source))
    for size in [(3, 20, 16)] if bench.rehearse else [(64, 1000, 512), (64, 300, 256)]:
        for mode in ("inference", "training"):
            result, moved = pool_case(bench, *size, mode)
            shares = {name: moved / value / bandwidth for name, value in result["seconds"].items() if "ours" in name}
            yield result | {"of the copy bandwidth": shares, "copy, bytes a second": bandwidth}


def pool_case(bench: Bench, batch: int, frames: int, width: int, mode: str) -> tuple[dict, int]:
    h = torch.randn(batch, frames, width, device=bench.device, requires_grad=mode == "training")
    w = (torch.randn(width, device=bench.device) / width**0.5).requires_grad_(mode == "training")
    grad, case = torch.randn(batch, width, device=bench.device), f"B={batch} T={frames} D={width}, {mode}"
    calls = bench.ours(lambda: attention_pool(h, w)[0]) | {
        "eager torch": lambda: eager(h, w, None),
        "one-query SDPA": lambda: one_query(h, w, None),
    }
    if not bench.rehearse:
        compiled = torch.compile(eager, dynamic=False)
        calls["torch.compile"] = lambda: compiled(h, w, None)
    steps = {name: step(mode, call, [h, w], grad) for name, call in calls.items()}
    truth = step(mode, lambda: eager(h.double(), w.double(), None), [h, w], grad.double())
    for name in bench.ours(lambda: None):
        check(f"{case}, {name}", steps[name](), truth(), 1e-4)
    result = bench.race(case, steps)
    return result, (3 if mode == "training" else 1) * h.nbytes


def spectrogram(bench: Bench) -> Iterator[dict]:
    """The normalised power spectrogram, whatever the tf32 switches say."""
    for batch, seconds in [(2, 1)] if bench.rehearse else [(32, 3), (64, 10)]:
        yield spectrogram_case(bench, batch, seconds)


def spectrogram_case(bench: Bench, batch: int, seconds: int) -> dict:
    wave = torch.randn(batch, 16000 * seconds, device=bench.device)
    window = torch.hamming_window(WINDOW, device=bench.device)
    plain = chain(wave, window, None, None)
    mean, std = plain.mean((0, 1)), plain.std((0, 1))
    calls = bench.ours(
        lambda: power_spectrogram(wave, window, N_FFT, HOP, (0, BINS), mean=mean, std=std, center=True)
    ) | {
        "torch.stft chain": lambda: chain(wave, window, mean, std),
    }
    if (transform := torchaudio_chain(mean, std)) is not None:
        calls["torchaudio"] = lambda: transform(wave)
    errors = {name: error_against_float64(call(), (wave, window, mean, std)) for name, call in calls.items()}
    case = f"{batch} x {seconds} s, normalised"
    for name in bench.ours(lambda: None):
        check(f"{case}, {name}", calls[name](), calls["torch.stft chain"](), 1e-5)
    result = bench.race(case, calls, errors=errors)
    frames = batch * plain.shape[1]
    return result | {"ns per frame": {name: 1e9 * value / frames for name, value in result["seconds"].items()}}


PARTS = {part.__name__: part for part in (tests, sanitizer, recurrence, gru, pool, spectrogram)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, action="append", help="all, if none is named")
    parser.add_argument("--rehearse", action="store_true", help="benchmarks only, tiny and on the CPU")
    options = parser.parse_args()
    if not options.rehearse:
        if not torch.cuda.is_available():
            parser.error("there is no GPU that torch can see; --rehearse tries the script without one")
        for name in KERNELS:
            backends.use(name)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    bench, failed = Bench(options.rehearse), False
    for name in options.part or [
        name for name in PARTS if not options.rehearse or name not in ("tests", "sanitizer")
    ]:
        start, entry = time.perf_counter(), {"cases": []}
        print(f"== {name}", flush=True)
        try:
            for case in PARTS[name](bench):
                entry["cases"].append(case)
        except Exception:
            failed = True
            entry["failed"] = traceback.format_exc()
            print(entry["failed"], flush=True)
        entry["took, s"] = time.perf_counter() - start
        gpu = "none: a rehearsal on the CPU" if options.rehearse else torch.cuda.get_device_name()
        results[name] = entry | {"machine": machine() | {"gpu": gpu, "cuda": torch.version.cuda}}
        write_atomically(options.out, f"{json.dumps(results, indent=1)}\n".encode())
    return failed


if __name__ == "__main__":
    sys.exit(main())

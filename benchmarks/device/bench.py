"""Where the parts run, at what sizes, and how they time."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import torch

from ser_fast import backends
from ser_fast.backends import build, dispatch, state

KERNELS = ("cuda", "triton")  # whose kernels are measured, side by side
FEWEST, MOST = 5, 30  # calls that are timed
LOST = 3  # exit status of a part whose process can no longer use the device


# What torch's switch for RNNs says, and the tolerance of outputs: float32 with tf32 on and off, then half precision.
PRECISIONS = {
    "tf32": (torch.float32, "tf32", 5e-3),
    "bfloat16": (torch.bfloat16, "ieee", 5e-2),
    "float32": (torch.float32, "ieee", 1e-5),
    "float16": (torch.float16, "ieee", 1e-2),
}


def precisions(bench: "Bench") -> list[str]:
    return [name for name, (dtype, *_) in PRECISIONS.items() if not bench.rehearse or dtype != torch.float16]


def allow(switch: str) -> None:
    """tf32, or not, in cuDNN's recurrences, in ours, and in the products beside them."""
    # By torch's older names, for its compiler asks by them and fails where the newer ones were set.
    torch.set_float32_matmul_precision("high" if switch == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = switch == "tf32"


@dataclass
class Case:
    """What is run, by name; ``run`` returns what it found, one dict or several."""

    name: str
    run: Callable[[], dict | list[dict]]


def by(backend: str | None, call: Callable) -> Callable:
    """The call on this backend's kernels; as it is where the backend is none of a GPU's."""
    if backend not in KERNELS:
        return call

    def run():
        state.current.on_cuda = backend
        return call()

    return run


class Bench:
    """A part's device, its time, and its data.

    Args:
        rehearse: small sizes on the CPU.
        out: folder of the results.
        seconds: that the part may take.
        data: Emo-DB's folder, if it is there.
        sanitizer: the program.
    """

    def __init__(
        self, rehearse: bool, out: Path, seconds: float, data: Path | None, sanitizer: str = "compute-sanitizer"
    ):
        self.rehearse, self.out, self.data, self.sanitizer = rehearse, out, data, sanitizer
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.kernels = ("compiled",) if rehearse else KERNELS
        self.end = time.monotonic() + seconds
        if not rehearse:
            if not torch.cuda.is_available():
                raise RuntimeError("there is no GPU that torch can see; --rehearse tries the run without one")
            for name in KERNELS:
                backends.use(name)
        torch.manual_seed(0)

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def lost(self) -> bool:
        """Whether an error has broken the device for this process, to which every further call fails."""
        if self.rehearse:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def ours(self, call: Callable) -> dict[str, Callable]:
        """The call on the kernels of each backend; a rehearsal knows those of the CPU alone."""
        return {f"ours, {name}": by(name, call) for name in self.kernels}

    def replayed(self, call: Callable) -> Callable:
        """The call as a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def time(self, call: Callable, seconds: float = 0.15) -> float:
        """Median seconds of a call: as many as fit, one after the other as in training, by the device's events."""
        if self.rehearse:
            return harness.fastest(call, 1)
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        count = int(seconds / (time.perf_counter() - start))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(min(max(count, FEWEST), MOST) + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)) / 1e3

    def race(
        self, steps: dict[str, Callable], checks: dict[str, Callable[[], float]], graphs: bool = True, **extra
    ) -> dict:
        """Medians of calls, one by one and as CUDA graphs.

        Nothing is timed whose check, of the same name, raises; the case has failed then, and the others are timed all
        the same. A peer that cannot run is left out and said to be; packing reads lengths back, which no graph can.
        """
        seconds, errors, wrong, left_out = {}, {}, {}, {}
        for name, call in steps.items():
            try:
                if name in checks:
                    errors[name] = checks[name]()
                seconds[name] = self.time(call)
            except Exception as error:
                (wrong if name in checks else left_out)[name] = _first_line(error)
                if self.lost():
                    break
                continue
            if graphs and not self.rehearse and "packed" not in name:
                try:
                    seconds[f"{name}, graph"] = self.time(self.replayed(call))
                except Exception as error:
                    left_out[f"{name}, graph"] = _first_line(error)
        found = {"seconds": seconds, "errors": errors, **extra}
        if left_out:
            found["left out"] = left_out
        if wrong:
            found |= {"state": "failed", "error": "; ".join(f"{name}: {why}" for name, why in wrong.items())}
        return found


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def machine(bench: Bench) -> dict:
    """What the figures must be read with.

    Raises:
        RuntimeError: the kernels that are to be measured did not load, or do not run here.
    """
    if not backends.loaded:
        raise RuntimeError(f"the compiled kernels did not load: {backends.reason}")
    found = harness.machine()
    here, built = found["commit"] or "not known", backends.build_info().get("commit") or "not known"
    of_here = Path(backends.__file__).is_relative_to(
        Path(__file__).parents[2]
    )  # its Python may be newer than its build
    found["commit"] = here if of_here or here == built else f"{built}, measured by the benchmarks of {here}"
    if bench.rehearse:
        return found | {"gpu": "none: a rehearsal on the CPU", "capability": "none"}
    import triton

    free, total = torch.cuda.mem_get_info()
    return found | {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory, GB": f"{free / 1e9:.0f} of {total / 1e9:.0f} free",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": build.driver_version(),
        "triton": triton.__version__,
        "built for": ", ".join(backends.build_info()["cuda_archs"]),
        "shared memory, and clusters of 1, 2, 4, 8 at once": str(dispatch.gru_limits(0).tolist()),
    }

"""Device, precisions and timing of the parts of the acceptance run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import torch

from ser_fast import backends
from ser_fast.backends import build, dispatch
from ser_fast.backends.measured import BACKENDS as KERNELS
from ser_fast.tuning import timing
from ser_fast.tuning.checks import PRECISIONS

LOST = 3  # exit status of a part whose process can no longer use the device


def precisions(bench: "Bench") -> list[str]:
    """Return the names of the precisions; a rehearsal omits float16."""
    return [name for name, (dtype, *_) in PRECISIONS.items() if not bench.rehearse or dtype != torch.float16]


@dataclass
class Case:
    """A named benchmark or test case; ``run`` returns its result, or several."""

    name: str
    run: Callable[[], dict | list[dict]]


class Bench:
    """Device, time limit and data of a part, and its timing functions.

    Args:
        rehearse: run on the CPU with small sizes.
        out: folder of the results.
        seconds: time limit of the part.
        data: folder of Emo-DB, or None.
        sanitizer: the compute-sanitizer program.

    Raises:
        RuntimeError: if torch sees no GPU and this is not a rehearsal.
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
        """Return the seconds left."""
        return self.end - time.monotonic()

    def lost(self) -> bool:
        """Return whether an error made the device unusable for this process: all further calls fail."""
        if self.rehearse:
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def ours(self, call: Callable) -> dict[str, Callable]:
        """Return the call on each backend's kernels, by name; a rehearsal has the CPU's only."""
        return {f"ours, {name}": timing.by(name, call) for name in self.kernels}

    def time(self, call: Callable, seconds: float = 0.15) -> float:
        """Return the median seconds of a call, over as many as fit into ``seconds``."""
        return harness.fastest(call, 1) if self.rehearse else timing.median(call, seconds)

    def compare(
        self, steps: dict[str, Callable], checks: dict[str, Callable[[], float]], graphs: bool = True, **extra
    ) -> dict:
        """Time calls, one by one and as CUDA graphs.

        A call whose check fails is not timed and the case fails; the other calls are still timed. A peer that raises
        is left out, with the reason. Packed peers have no graph: packing reads the lengths on the CPU.

        Args:
            steps: calls by name.
            checks: check of a call, by the same name; returns its error or raises.
            graphs: also time each call as a CUDA graph.
            extra: further entries of the result.

        Returns:
            Dict with ``seconds`` and ``errors`` by name and, if any, ``left out``, ``state`` and ``error``.
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
                    seconds[f"{name}, graph"] = self.time(timing.captured(call)[1])
                except Exception as error:
                    left_out[f"{name}, graph"] = _first_line(error)
        found = {"seconds": seconds, "errors": errors, **extra}
        if left_out:
            found["left out"] = left_out
        if wrong:
            found |= {"state": "failed", "error": "; ".join(f"{name}: {why}" for name, why in wrong.items())}
        return found


def _first_line(error: Exception) -> str:
    """Return the exception's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def machine(bench: Bench) -> dict:
    """Return the environment of the measurements: GPU, versions, commit, limits.

    Raises:
        RuntimeError: if the compiled kernels did not load.
    """
    if not backends.loaded:
        raise RuntimeError(f"the compiled kernels did not load: {backends.reason}")
    found = harness.machine()
    here, built = found["commit"] or "not known", backends.build_info().get("commit") or "not known"
    # An editable install runs the Python of this checkout, which may be newer than the build.
    editable = Path(backends.__file__).is_relative_to(Path(__file__).parents[2])
    found["commit"] = here if editable or here == built else f"{built}, measured by the benchmarks of {here}"
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

"""The rules of the CPU's kernels that a measurement on the machine may change: ``ser-fast tune --device cpu``."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ser_fast._require import require

PRECISIONS = ("float32", "float64", "bfloat16")
# Fewest steps of a GRU that records a gradient, by hidden size, measured with AVX-512 on two processors.
FEWEST_STEPS = {"64": 2, "128": 2, "256": 8, "512": 16}
MOST = 2**31 - 1  # the largest value of a rule


@dataclass(frozen=True)
class Rules:
    """Rules of the CPU's kernels.

    Args:
        nanoseconds_per_thread: work that pays for one more thread. The default suits a machine that other processes
            keep busy; on an idle one less is enough.
        frames_per_task: frames of the power spectrogram that one task transforms.
        fewest_steps: by precision and hidden size, the fewest time steps for which a GRU that records a gradient runs
            on our kernels; torch's path is faster for fewer, since W_hh is laid out for the kernels in every call.
    """

    nanoseconds_per_thread: int = 100_000
    frames_per_task: int = 256
    fewest_steps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def steps(self, precision: str, hidden_size: int | None) -> int:
        """Return the fewest steps of a GRU; a hidden size takes those of the next larger one that was measured."""
        rows = self.fewest_steps.get(precision) or FEWEST_STEPS
        sizes = sorted(map(int, rows))
        return rows[str(next((size for size in sizes if size >= (hidden_size or 0)), sizes[-1]))]


def parse(found: object) -> Rules:
    """Return the rules of a table entry.

    Raises:
        ValueError: if the entry has another form; the message says where.
    """
    known = asdict(Rules())
    require(isinstance(found, dict), f"the rules are {found!r}", "an object")
    for name, value in found.items():
        require(name in known, f"a rule is {name!r}", f"one of {', '.join(known)}")
        if name != "fewest_steps":
            _positive(name, value)
            continue
        require(isinstance(value, dict), f"{name} is {value!r}", "an object")
        for precision, rows in value.items():
            require(precision in PRECISIONS, f"a precision is {precision!r}", f"one of {', '.join(PRECISIONS)}")
            require(isinstance(rows, dict), f"{name} of {precision} is {rows!r}", "an object")
            for size, steps in rows.items():
                require(re.fullmatch("[1-9][0-9]{0,8}", size), f"a hidden size is {size!r}", "a positive integer")
                _positive(f"{name} of {precision} {size}", steps)
    return Rules(**found)


def _positive(name: str, value: object) -> None:
    require(type(value) is int and 0 < value <= MOST, f"{name} is {value!r}", f"an integer in 1..{MOST}")

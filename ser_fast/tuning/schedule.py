"""Divide the two minutes of ``ser-fast tune`` among its phases: arithmetic only, tested without a GPU.

Every phase ends at its limit, whatever a kernel does, and a killed process is waited for at most ``KILL`` seconds, so
the sum of the limits bounds the whole run. Time that a phase leaves goes to the timing.
"""

from dataclasses import dataclass

from ser_fast._require import require

TOTAL = 120.0  # seconds, for everything
START = 15.0  # a worker starts, and describes the GPU
PROOF = 50.0  # all proofs, at once: most of it is Triton's compiler
LOAD = 8.0  # a worker starts for the timing
QUIET = 15.0  # the longest that a worker of the timing may be silent
KILL = 2.0  # for the end of a killed process, in each phase
STORE = 2.0  # choosing, printing, storing
SLOT = 0.25  # smallest time of a case: 7 rounds of three paths, at 10 ms a call
SHARE = 0.6  # share of a slot for the rounds; the rest prepares the case


@dataclass(frozen=True)
class Schedule:
    """Limits of the phases in seconds.

    Args:
        start, proof, timing: limits of describing the GPU, of all proofs, and of the timing with its worker's start.
        slot: time for each case, of which there is one more than given: the first is timed again last.
        quiet: the longest time from one line of a worker of the timing to the next.
    """

    start: float
    proof: float
    timing: float
    slot: float
    quiet: float

    @property
    def worst(self) -> float:
        """The latest end, in which every phase reaches its limit and then kills its workers."""
        return self.start + self.proof + self.timing + 3 * KILL + STORE


def schedule(cases: int, total: float = TOTAL) -> Schedule:
    """Return the limits for so many cases to time.

    Args:
        total: seconds for everything; those of the phases shrink with it.

    Raises:
        ValueError: so many cases do not fit.

    Example:
        >>> schedule(39).worst
        120.0
    """
    timing = TOTAL - START - PROOF - 3 * KILL - STORE
    slot = (timing - LOAD) / (cases + 1)
    most = int((timing - LOAD) / SLOT) - 1
    require(slot >= SLOT, f"the shapes give {cases} cases to time", f"at most {most}: give fewer shapes")
    fixed = 3 * KILL + STORE
    left = (total - fixed) / (TOTAL - fixed)
    require(left > 0, f"the time is {total:g} s", f"above {fixed:g} s")
    return Schedule(START * left, PROOF * left, timing * left, slot * left, QUIET * left)

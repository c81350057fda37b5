"""Reports of long tasks."""

import contextlib
import time
from collections.abc import Callable, Iterator

SECONDS = 10.0  # from one report to the next, at least


class Pace:
    """Decides when a long task reports: at each tenth of it, and at most every 10 seconds."""

    def __init__(self):
        self._tenths, self._time = 0, time.monotonic()

    def due(self, share: float) -> bool:
        """Return whether to report that this share of the task, in 0..1, is done; its end is never reported."""
        tenths, now = int(10 * share), time.monotonic()
        if not self._tenths < tenths < 10 or now - self._time < SECONDS:
            return False
        self._tenths, self._time = tenths, now
        return True


@contextlib.contextmanager
def progress(report: Callable[[str], None], task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of utterances that are done, and reports it.

    Args:
        report: its attribute ``progress``, a function of task and total like this one, shows the progress; without
            one, ``report`` is called with a line when :class:`Pace` says so.
        task: verb of the lines, such as "read".
        total: number of utterances.
    """
    shown = getattr(report, "progress", None)
    if shown is not None:
        with shown(task, total) as done:
            yield done
        return
    pace = Pace()

    def advance(done: int) -> None:
        if pace.due(done / total):
            report(f"{task} {done} of {total} utterances")

    yield advance

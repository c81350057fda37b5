"""Reports of long tasks."""

import time

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

"""Run workers with time limits: a worker that hangs is killed, one that dies is reported."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from ser_fast.backends import tuned
from ser_fast.tuning.schedule import KILL

WORKER = (sys.executable, "-m", "ser_fast.tuning.worker")
# Workers choose backends themselves; cuBLAS needs the last one for deterministic algorithms.
ENVIRONMENT = {tuned.VARIABLE: "0", "SER_FAST_BACKEND": "auto", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
POLL = 0.02  # seconds


class Outcome(NamedTuple):
    """Lines that a worker wrote, and why it ended early; None if it did not."""

    lines: list[dict]
    ending: str | None

    def last(self, name: str):
        """Return the last value of this name that the worker wrote, or None."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)


class Worker:
    """A worker process with its job."""

    def __init__(self, command: Sequence[str], job: dict):
        self.output, self.errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  read at the end
        self.ending: str | None = None
        self.size, self.heard = 0, time.monotonic()
        self.process = subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=self.errors,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        with contextlib.suppress(OSError), self.process.stdin:  # it may have died
            self.process.stdin.write(json.dumps(job).encode())

    def running(self) -> bool:
        """Return whether the process runs."""
        size = os.fstat(self.output.fileno()).st_size
        if size != self.size:
            self.size, self.heard = size, time.monotonic()
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill the process and all that it started; it may outlive the wait, inside the driver."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def outcome(self) -> Outcome:
        """Return the complete lines, and the reason of an early end; close the files."""
        with self.output, self.errors:
            for file in (self.output, self.errors):
                file.seek(0)
            lines = []
            for line in self.output:
                with contextlib.suppress(ValueError):  # cut off by the end
                    lines.append(json.loads(line))
            said = self.errors.read().decode(errors="replace").split("\n")
            said = [line.strip() for line in said if line.strip()][-1:]
        if self.ending is None and self.process.returncode:
            self.ending = ": ".join([f"its process ended with status {self.process.returncode}", *said])
        return Outcome(lines, self.ending)


def run(jobs: Sequence[dict], command: Sequence[str], seconds: float, quiet: float | None = None) -> list[Outcome]:
    """Run the jobs at once, each in a worker, and return their outcomes.

    Args:
        seconds: limit of all of them.
        quiet: limit of the time from one line of a worker to the next.
    """
    start = time.monotonic()
    workers: list[Worker] = []
    try:
        workers += [Worker(command, job) for job in jobs]
        waiting = list(workers)
        while waiting:
            time.sleep(POLL)
            waiting = [worker for worker in waiting if worker.running()]
            now = time.monotonic()
            for worker in waiting:
                late, silent = now - start > seconds, quiet is not None and now - worker.heard > quiet
                if late or silent:
                    worker.ending = f"it did not end within {seconds if late else quiet:.0f} s"
                    worker.kill()
            waiting = [worker for worker in waiting if worker.ending is None]
    finally:
        for worker in workers:
            worker.kill()
        end = time.monotonic() + KILL
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
    return [worker.outcome() for worker in workers]

"""A pytest plugin, ``-p device.outcomes``: each test's outcome is a line of ``SER_FAST_OUTCOMES`` when it is known.

So a run that is ended for its time has told all that it knew.
"""

import json
import os


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # xdist's workers report to their controller
        config.pluginmanager.register(Outcomes(os.environ["SER_FAST_OUTCOMES"]))


class Outcomes:
    def __init__(self, path: str):
        self.path = path

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            error = report.longreprtext if report.outcome != "passed" else ""
            self._write(
                {"test": report.nodeid, "outcome": report.outcome, "error": error, "seconds": report.duration}
            )

    def pytest_collectreport(self, report):
        if report.failed:
            self._write({"test": report.nodeid, "outcome": "failed", "error": report.longreprtext, "seconds": 0.0})

    def _write(self, found: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(found)}\n")

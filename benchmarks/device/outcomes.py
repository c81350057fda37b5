"""pytest plugin (``-p device.outcomes``): append each test's outcome to the file ``SER_FAST_OUTCOMES`` at once.

The outcomes up to a timeout are therefore known.
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

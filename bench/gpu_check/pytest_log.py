"""A pytest plugin that writes the outcome of every test as it ends, so that a killed run has lost nothing.

The file named by the environment variable FASTALEX_TEST_LOG gets one line of JSON when a test starts and when it ends.
With pytest-xdist, the process that distributes the tests writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "FASTALEX_TEST_LOG"


def pytest_configure(config: Any) -> None:
    """Record outcomes, except in xdist's workers."""
    if VARIABLE in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ[VARIABLE])))


class Recorder:
    """Writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "running")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome, _error(report) if report.failed else None)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", _error(report))

    def _write(self, test: str, outcome: str, error: str | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"test": test, "outcome": outcome, "error": error}) + "\n")


def _error(report: Any) -> str:
    """The first and the last line of what a test failed with."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else crash.message
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    if crash is None:  # a traceback, or the end of a worker
        return lines[-1]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def read(path: Path) -> dict[str, tuple[str, str | None]]:
    """Test -> (outcome, error). A test that had started when the run was killed is "running"."""
    found: dict[str, tuple[str, str | None]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        if found.get(entry["test"], ("", None))[0] != "failed":
            found[entry["test"]] = (entry["outcome"], entry["error"])
    return found

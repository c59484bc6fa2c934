"""Trying faults one after another, each against the tests that should see it."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.faults import Fault
from tests.mutation.matching import TestFiles
from tests.mutation.sandbox import Sandbox, seconds_by_file

CAUGHT, TIME_LIMIT, NOT_COMPILED, SURVIVED = "caught", "caught by the time limit", "caught by the compiler", "survived"
# A fault may take this many times as long as the same tests without it, and these seconds more: on a busy machine the
# same tests may take much longer the second time.
_TIMES, _SECONDS_MORE = 5, 120


class CannotTryError(Exception):
    """The faults asked for cannot be tried; the message says why."""


class _OutOfTimeError(Exception):
    """The time for the whole is over."""


@dataclass(frozen=True)
class _Clean:
    """Tests that pass without a fault, cheapest first, and how long they take."""

    tests: TestFiles
    seconds: float


class Campaign:
    """Tries faults in copies of a checkout, ``jobs`` at a time.

    Args:
        folder: where the copies are made.
        tests: the test files of each file with faults, in steps: what the first ones do not see is shown to the next.
        seconds: for the whole; a fault that is being tried when they are over does not count.
    """

    def __init__(
        self,
        folder: Path,
        checkout: Path,
        tests: dict[str, tuple[TestFiles, ...]],
        *,
        jobs: int,
        seconds: float | None,
    ) -> None:
        self._tests = tests
        self._end = None if seconds is None else time.monotonic() + seconds
        self._sandboxes = [Sandbox(folder / str(number), checkout) for number in range(jobs)]
        self._free: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        for sandbox in self._sandboxes:
            self._free.put(sandbox)
        self._caches = folder / "caches"  # as tests without a fault leave them
        self._caches.mkdir()
        self._report = folder / "report.xml"
        self._clean: dict[TestFiles, _Clean] = {}
        self._checking = threading.Lock()  # one at a time runs tests without a fault
        self._copying = threading.Lock()  # of the caches

    def outcomes(self, faults: Sequence[Fault]) -> Generator[tuple[Fault, str], None, None]:
        """Each fault that there is time for with its outcome, in the order in which they end.

        Raises:
            CannotTryError: tests fail without a fault.
            OSError: there is no C compiler.
        """
        with ThreadPoolExecutor(len(self._sandboxes)) as pool:
            futures = {pool.submit(self._try, fault): fault for fault in faults}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except _OutOfTimeError:
                pass
            finally:  # also after Ctrl-C
                pool.shutdown(wait=False, cancel_futures=True)
                for sandbox in self._sandboxes:
                    sandbox.stop()

    def _try(self, fault: Fault) -> str:
        sandbox = self._free.get()
        try:
            for tests in self._tests[fault.path]:
                clean = self._clean.get(tests) or self._passing(sandbox, tests)
                self._copy(self._caches, sandbox.caches)
                with sandbox.fault(fault):
                    if not sandbox.compiles(fault.path):
                        return NOT_COMPILED
                    code = self._run(sandbox, clean.tests, _TIMES * clean.seconds + _SECONDS_MORE)
                if code != 0:
                    return TIME_LIMIT if code is None else CAUGHT
            return SURVIVED
        finally:
            self._free.put(sandbox)

    def _passing(self, sandbox: Sandbox, tests: TestFiles) -> _Clean:
        """Run tests without a fault, the first time that they are wanted.

        Raises:
            CannotTryError: they fail.
        """
        with self._checking:
            if tests not in self._clean:
                self._copy(self._caches, sandbox.caches)
                started = time.monotonic()
                if self._run(sandbox, tests, None, report=self._report):
                    raise CannotTryError(f"{_reason(sandbox, tests)}, although there is no fault yet; mend that first")
                seconds = time.monotonic() - started
                self._copy(sandbox.caches, self._caches)
                by_file = seconds_by_file(self._report, tests)
                self._clean[tests] = _Clean(tuple(sorted(tests, key=by_file.__getitem__)), seconds)
        return self._clean[tests]

    def _run(
        self, sandbox: Sandbox, tests: Sequence[str], seconds: float | None, report: Path | None = None
    ) -> int | None:
        left = None if self._end is None else self._end - time.monotonic()
        if left is not None and left <= 0:
            raise _OutOfTimeError
        code = sandbox.run(tests, min((limit for limit in (seconds, left) if limit is not None), default=None), report)
        if self._end is not None and code is None and time.monotonic() >= self._end:
            raise _OutOfTimeError
        return code

    def _copy(self, source: Path, target: Path) -> None:
        with self._copying:
            shutil.rmtree(target)
            shutil.copytree(source, target)


def _reason(sandbox: Sandbox, tests: Sequence[str]) -> str:
    """The line in which pytest names what fails."""
    lines = sandbox.output.read_text(errors="replace").splitlines()
    marked = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return marked[0] if marked else f"{' '.join(tests)}: {lines[-1] if lines else 'pytest says nothing'}"

"""A copy of the checkout in which tests run with a fault in one file, and all that they started ends with them."""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

from tests.mutation.faults import Fault

FOLDERS = ("kernels", "dataloading", "fastalex", "bench", "tests", "docs")
_FILES = ("*.toml", "*.md", "*.txt", "LICENSE", "Makefile")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.gz")
_MARK = "FASTALEX_SANDBOX"  # names the sandbox in the environment of every process that tests start in it
_PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")


class Sandbox:
    """A copy of the checkout's code and tests, a temporary folder and a folder of caches, below ``folder``.

    What runs in it imports the copy, and compiles ``native.c`` into these caches. :meth:`stop` may be called from
    another thread; everything else belongs to one.
    """

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.code, self.caches = folder, folder / "code", folder / "caches"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.code.mkdir(parents=True)
        self.caches.mkdir()
        for name in FOLDERS:
            if (checkout / name).is_dir():
                shutil.copytree(checkout / name, self.code / name, ignore=_NOT_COPIED)
        for file in (file for pattern in _FILES for file in checkout.glob(pattern)):
            shutil.copy2(file, self.code)

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Have a fault in the copy."""
        path = self.code / fault.path
        text = path.read_text()
        try:
            self._write(path, fault.applied(text))
            yield
        finally:
            self._write(path, text)

    def compiles(self, path: str) -> bool:
        """Whether a file of the copy is Python or C at all; where C is not, the operators would quietly do without.

        Raises:
            OSError: there is no C compiler.
        """
        file = self.code / path
        if file.suffix == ".c":
            compiler = shlex.split(os.environ.get("CC") or "cc")
            command = [*compiler, "-fsyntax-only", "-std=gnu11", "-fopenmp", "-w", str(file)]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        try:
            ast.parse(file.read_text())
        except SyntaxError:
            return False
        return True

    def run(self, tests: Sequence[str], seconds: float | None, report: Path | None = None) -> int | None:
        """Run test files up to the first failure; returns pytest's exit code, or None if ``seconds`` did not suffice.

        Args:
            report: a file for the time that each test takes.
        """
        temporary = self.folder / "tmp"
        temporary.mkdir()
        variables = {
            _MARK: str(self.folder),
            "PYTHONPATH": str(self.code),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(self.caches),
            "TRITON_CACHE_DIR": str(self.caches / "triton"),
        }
        if report is None:  # Compiled modules are told apart by time and size, and a fault may leave both as they are.
            variables["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, *_PYTEST, *([f"--junitxml={report}"] if report else []), *tests]
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=self.code, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                if self._stopped:
                    self.stop()
                return self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                self._end_all()
                self._process.wait()
                shutil.rmtree(temporary, ignore_errors=True)

    @property
    def output(self) -> Path:
        """What the last tests printed."""
        return self.folder / "output.txt"

    def stop(self) -> None:
        """End the tests that run; those that start later end at once."""
        self._stopped = True
        if self._process is not None:
            self._end_all()

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def _end_all(self) -> None:
        """Kill the tests and all that they started, also what left their process group."""
        assert self._process is not None
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for _ in range(100):  # those that are born meanwhile are found by the next round
            left = list(_marked(f"{_MARK}={self.folder}"))
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.02)


def seconds_by_file(report: Path, tests: Sequence[str]) -> dict[str, float]:
    """The time that each test file took, from pytest's report."""
    modules = {test.removesuffix(".py").replace("/", "."): test for test in tests}
    seconds = dict.fromkeys(tests, 0.0)
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "")
        for module, test in modules.items():
            if name == module or name.startswith(f"{module}."):
                seconds[test] += float(case.get("time", 0))
    return seconds


def _marked(variable: str) -> Iterator[int]:
    """Processes that have this variable in their environment, where the system has ``/proc``."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.fsencode(variable) in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)

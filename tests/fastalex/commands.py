"""Running commands as a user types them, and waiting for what they do."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastalex import cli
from fastalex.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = ["--width", "0.0625", "--no-lrn", "-b", "8", "--recipe", "small"]
SECONDS_TO_END = 30


def environment() -> dict[str, str]:
    """The environment of commands: one thread, and lines that are not broken."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start ``python -m`` with these arguments in a folder."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def command(folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; returns its exit code, output and error output."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def command_here(folder: Path, *arguments: str | Path) -> tuple[object, str, str]:
    """Run a command in this process, because a new one takes seconds to import torch.

    Returns its exit code, output and error output. It and its workers have one thread, as those of `command`.
    """
    module, *others = map(str, arguments)
    threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module, *others])
        patch.setenv("COLUMNS", "200")
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main(importlib.import_module(module).main)
        finally:
            torch.set_num_threads(threads)
    return ended.value.code, out.getvalue(), err.getvalue()


def refused(folder: Path, *arguments: str | Path) -> str:
    """Run a command that refuses its input in this process, and return the line it prints."""
    code, _, err = command_here(folder, *arguments)
    return line_of(code, err)


def line_of(code: object, err: str) -> str:
    """Check that a command has refused its input with a single line, and return it."""
    assert code == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    return lines[0]


def wait_for_steps(run: Path, steps: int) -> None:
    """Wait until a run has logged this many lines."""
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < steps:
        assert time.monotonic() < deadline, "the run made no steps"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Ids of a process's children and their descendants."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*direct, *(grandchild for child in direct for grandchild in children(child))]


def assert_all_end(pids: list[int]) -> None:
    """Wait until none of these processes exists."""
    deadline = time.monotonic() + SECONDS_TO_END
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker is still alive"
        time.sleep(0.05)

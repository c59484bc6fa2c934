"""Child processes end with their parent, everything can be printed, and commands to copy."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataloading.process import SCRIPT, command, print_anything, usage

CHILD = "import os, sys, time; from dataloading.process import die_with_parent; die_with_parent(int(sys.argv[1]))"
SLEEPING_CHILD = CHILD + "; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPING_CHILD!r}, str(os.getpid())])
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_dies_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_running(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    parent.stdout.close()
    assert not is_running(child)


def test_a_child_exits_if_its_parent_has_died_before():
    another = subprocess.Popen([sys.executable, "-c", ""])
    another.wait()
    done = subprocess.run([sys.executable, "-c", f"{CHILD}; print('alive')", str(another.pid)], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_nothing_happens_while_the_parent_lives():
    done = subprocess.run([sys.executable, "-c", f"{CHILD}; print('alive')", str(os.getpid())], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


@pytest.mark.parametrize(
    ("errors", "printed"), [("strict", b"caf? ?\n"), ("surrogateescape", b"caf? ?\n"), ("backslashreplace", None)]
)
def test_any_text_can_be_printed_on_any_terminal(monkeypatch, errors, printed):
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
        monkeypatch.setattr(sys, name, stream)
        print_anything()
        print("caf\u00e9 \udcff", file=stream, flush=True)
        assert stream.buffer.getvalue() == (printed or b"caf\\xe9 \\udcff\n")  # as the user has chosen
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # what a notebook has, say
    print_anything()


def test_a_command_to_copy_runs_this_python_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("fastalex.train", "--epochs", 5) == f"{sys.executable} -m fastalex.train --epochs 5"
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert command("dataloading.check", "my data") == ".venv/bin/python -m dataloading.check 'my data'"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert command("dataloading.check", "x") == f"{tmp_path}/.venv/bin/python -m dataloading.check x"


def test_a_command_to_copy_names_the_script_that_was_called(tmp_path, monkeypatch):
    script = tmp_path / "bin" / "fastalex"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SCRIPT, str(script))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert usage("fastalex.train") == "bin/fastalex train"
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    assert command("dataloading.check", "my data") == "fastalex check 'my data'"
    assert command("pip", "install", "x") == f"{sys.executable} -m pip install x"
    monkeypatch.delenv(SCRIPT)
    assert usage("fastalex.train") == "python -m fastalex.train"

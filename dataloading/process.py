"""What processes of commands need: to end with their parent, to print anything, and to name commands to copy."""

import ctypes
import io
import os
import shlex
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process (SIGKILL) when its parent dies, even if the parent is killed itself.

    Call it first thing in a child process. The parent passes its own ``os.getpid()``: if it has died before this call,
    the process exits at once with code 1. Systems other than Linux have no such signal; there only that check is made.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the signal was requested
        os._exit(1)


def print_anything() -> None:
    """Let this process print every text: what the terminal's encoding lacks becomes a question mark, not an exception.

    Class names and paths may hold any character, and a file name may hold bytes that are none.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def install_command(extra: str) -> str:
    """The shell command that installs an extra of fastalex for this Python: what some commands need and others not."""
    return command("pip", "install", f"fastalex[{extra}]")


def command(*arguments: object) -> str:
    """The shell command that runs a module with this Python from the current folder, to show to users.

    ``command("dataloading.check", "my data")`` is ``.venv/bin/python -m dataloading.check 'my data'`` where `.venv` is
    in the current folder.
    """
    python = Path(sys.executable or "python3")
    try:
        if python.is_relative_to(Path.cwd()):
            python = python.relative_to(Path.cwd())
    except OSError:  # the current folder is gone
        pass
    return shlex.join(map(str, (python, "-m", *arguments)))

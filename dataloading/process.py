"""What processes of commands need: to end with their parent, to print anything, and to name commands to copy."""

import ctypes
import io
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
SCRIPT = "FASTALEX_SCRIPT"
"""Environment variable with the path of the script ``fastalex`` where that was called; workers inherit it."""


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


def stop_printing() -> int:
    """Print nothing more: whoever read the output, such as head, has seen enough. Returns the exit code for that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def install_command(extra: str) -> str:
    """The shell command that installs an extra of fastalex for this Python: what some commands need and others not."""
    return command("pip", "install", f"fastalex[{extra}]")


def command(*arguments: object) -> str:
    """The shell command that runs a module, in the form in which the user has called this program, to show to users.

    ``command("dataloading.check", "my data")`` is ``fastalex check 'my data'`` after another ``fastalex`` command, else
    ``.venv/bin/python -m dataloading.check 'my data'`` where `.venv` is in the current folder.
    """
    script, (package, _, name) = os.environ.get(SCRIPT), str(arguments[0]).partition(".")
    if script and name and package in ("dataloading", "fastalex"):
        short = Path(script).name
        found = shutil.which(short)
        first = short if found and os.path.realpath(found) == os.path.realpath(script) else _from_here(Path(script))
        return shlex.join(map(str, (first, name, *arguments[1:])))
    return shlex.join(map(str, (_from_here(Path(sys.executable or "python3")), "-m", *arguments)))


def usage(module: str) -> str:
    """What users type before the arguments of a command: ``python -m fastalex.train`` or ``fastalex train``."""
    return command(module) if os.environ.get(SCRIPT) else f"python -m {module}"


def _from_here(program: Path) -> Path:
    """The path of a program from the current folder if it is in there."""
    try:
        return program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    except OSError:  # the current folder is gone
        return program

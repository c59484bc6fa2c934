"""What all commands share: option types, checks, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tyro.conf import arg

from dataloading import DatasetError
from dataloading.command_line import with_option
from dataloading.process import command as shell_command
from fastalex.errors import Aborted, ConfigurationError, Interrupted, WorkerError
from fastalex.parallel.failures import leave
from fastalex.parallel.torchrun import is_worker


def optional(metavar: str, *aliases: str) -> Any:
    """Type annotation of an option that may be left out; its help text names the default."""
    return arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


def check_positive(name: str, value: int) -> None:
    """Check that a count is at least 1.

    Raises:
        ConfigurationError: it is not.
    """
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}")


@contextmanager
def resume_hint(run: Path, is_finished: Callable[[], bool]) -> Iterator[None]:
    """Append how to go on to the message of a failed worker or of an abort: the command that resumes the run.

    Args:
        is_finished: whether the run has saved its last epoch, so that only its end was disturbed.
    """
    try:
        yield
    except WorkerError as error:
        raise WorkerError(f"{error}; {_how_to_go_on(run, is_finished())}") from None
    except (Aborted, KeyboardInterrupt) as error:
        number = getattr(error, "signal_number", signal.SIGINT)
        raise Interrupted(f"interrupted; {_how_to_go_on(run, is_finished())}", number) from None


def _how_to_go_on(run: Path, is_finished: bool) -> str:
    if is_finished:
        return f"the run is finished and saved in {run}; evaluate it with: {shell_command('fastalex.evaluate', run)}"
    return f"resume with: {shell_command('fastalex.train', '--resume', run)}"


def main(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit.

    Exit codes: 0 after success, 2 after invalid input, 1 after a failed worker, 128 + n after signal n.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # since fastalex/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
        code = 0
    except (ConfigurationError, DatasetError) as error:
        code = _report(f"error: {with_option(str(error))}", 2, error)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise  # not about a file, so not the user's input
        subject = f"{error.filename}: " if error.filename is not None else ""
        code = _report(f"error: {subject}{error.strerror}", 2, error)
    except WorkerError as error:
        code = _report(f"error: {error}", 1, error)
    except Interrupted as error:
        code = _report(str(error), 128 + error.signal_number, error)
    except KeyboardInterrupt as error:
        code = _report("interrupted", 128 + signal.SIGINT, error)
    sys.stdout.flush()
    if is_worker():
        if code:
            os._exit(code)  # exit functions might wait for operations with other workers
        leave()
    sys.exit(code)


def _report(message: str, code: int, error: BaseException) -> int:
    if not getattr(error, "reported_elsewhere", False):
        print(message, file=sys.stderr, flush=True)
    return code

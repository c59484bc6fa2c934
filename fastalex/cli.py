"""What all commands share: imports that take long, checks, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from dataloading import DatasetError
from dataloading.command_line import with_option
from dataloading.process import stop_printing
from fastalex.errors import ConfigurationError, Interrupted, WorkerError
from fastalex.startup import is_worker


def check_positive(name: str, value: int) -> None:
    """Check that a count is at least 1.

    Raises:
        ConfigurationError: it is not.
    """
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}")


@contextmanager
def slow_imports() -> Iterator[None]:
    """Import in this block what takes seconds, such as PyTorch; Ctrl-C then ends the process without a traceback.

    Commands do so after they have parsed their options: ``--help`` and a mistake on the command line answer at once.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody's own, or Ctrl-C is ignored
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
    except BrokenPipeError:
        code = stop_printing()
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
        from fastalex.parallel.failures import leave  # not at the top: --help does without PyTorch

        leave()
    sys.exit(code)


def _report(message: str, code: int, error: BaseException) -> int:
    if not getattr(error, "reported_elsewhere", False):
        print(message, file=sys.stderr, flush=True)
    return code

"""What every command line does: parse, and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tyro.conf import arg

from dataloading import DatasetError
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.parallel.failures import WorkerError
from fastalex.parallel.torchrun import is_worker


def check_positive(name: str, value: int) -> None:
    """Refuse a count of less than one.

    Raises:
        ConfigurationError: it is.
    """
    if value < 1:
        raise ConfigurationError(f"{name} is {value}; at least 1 is wanted")


def main(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0; 2 after bad input; 1 after a failed worker; 128 + signal after an interruption."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # since the package was imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command()
        code = 0
    except (ConfigurationError, DatasetError) as error:
        code = _say(f"error: {error}", 2, error)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise  # not a file that a user named
        place = f"{error.filename}: " if error.filename is not None else ""
        code = _say(f"error: {place}{error.strerror}", 2, error)
    except WorkerError as error:
        code = _say(f"error: {error}", 1, error)
    except Interrupted as error:
        code = _say(str(error), 128 + error.signal_number, error)
    except KeyboardInterrupt as error:
        code = _say("interrupted", 130, error)
    sys.stdout.flush()
    if code and is_worker():
        os._exit(code)  # an orderly exit would wait for operations with the other workers
    sys.exit(code)


def optional(metavar: str, *aliases: str) -> Any:
    """An option that may be left out; its text says what then holds."""
    return arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


def _say(message: str, code: int, error: BaseException) -> int:
    if not getattr(error, "said", False):
        print(message, file=sys.stderr, flush=True)
    return code

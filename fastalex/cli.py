"""What every command line does: parse, and turn errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dataloading import DatasetError
from fastalex.errors import ConfigurationError
from fastalex.launch import Interrupted, WorkerError


def main(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0; 2 after bad input; 1 after a failed worker; 128 + signal after an interruption."""
    try:
        command()
        code = 0
    except (ConfigurationError, DatasetError) as error:
        code = _say(f"error: {error}", 2)
    except WorkerError as error:
        code = _say(f"error: {error}", 1)
    except Interrupted as error:
        code = _say(str(error), 128 + error.signal_number)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    sys.stdout.flush()
    sys.exit(code)


def _say(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # several workers of an outer launcher meet the same error
        print(message, file=sys.stderr, flush=True)
    return code

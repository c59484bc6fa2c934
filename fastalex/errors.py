"""The exceptions that commands report in one line, without a traceback."""

from __future__ import annotations

import signal


class ConfigurationError(ValueError):
    """A request that cannot be fulfilled: the message names the thing, the value found, the value wanted and a remedy.

    Commands print it after ``error:`` and exit with code 2. ``reported_elsewhere`` is set where another worker on this
    machine prints the same message.
    """

    reported_elsewhere = False


class NonFiniteLoss(ConfigurationError):
    """The loss is infinite or NaN: training has diverged."""


class WorkerError(Exception):
    """A worker process failed for a reason other than the user's input; the message says which one and how."""

    reported_elsewhere = False


class Interrupted(Exception):
    """Stopped on request by Ctrl-C or another signal. ``signal_number`` says which."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Aborted(Interrupted):
    """Ended by a signal before the workers could report how far they were."""

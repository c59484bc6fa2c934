"""The error that a user's input can cause in this package."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """The run stopped on request (Ctrl-C or SIGTERM) and left a checkpoint behind."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Aborted(Interrupted):
    """Ended by a signal before the workers could say how far they were."""


class ConfigurationError(ValueError):
    """Something asked for cannot be done: one line with the thing, the value found, the value wanted and the remedy.

    Command lines print it after ``error:`` and exit with 2, without a traceback. ``said`` means that another worker of
    this machine prints the same one.
    """

    said = False


class NonFiniteLoss(ConfigurationError):
    """The loss is infinite or not a number: the run has diverged."""

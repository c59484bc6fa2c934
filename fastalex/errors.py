"""The error that a user's input can cause in this package."""


class ConfigurationError(ValueError):
    """Something asked for cannot be done: one line with the thing, the value found, the value wanted and the remedy.

    Command lines print it after ``error:`` and exit with 2, without a traceback. ``everywhere`` says that all workers
    of an outer launcher raise the same one, so that one of them prints it.
    """

    everywhere = False


class NonFiniteLoss(ConfigurationError):
    """The loss is infinite or not a number: the run has diverged."""

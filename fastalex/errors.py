"""The error that a user's input can cause in this package."""


class ConfigurationError(ValueError):
    """Something asked for cannot be done: one line with the thing, the value found, the value wanted and the remedy.

    Command lines print it after ``error:`` and exit with 2, without a traceback. ``said`` means that another worker of
    this machine prints the same one.
    """

    said = False


class NonFiniteLoss(ConfigurationError):
    """The loss is infinite or not a number: the run has diverged."""

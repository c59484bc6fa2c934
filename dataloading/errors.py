"""The one error that problems of a user's data are reported with."""


class DatasetError(ValueError):
    """Something is wrong with a data set, its source or its destination.

    The message is one line for the person at the terminal: which thing, the value found, the value wanted and what to
    do next. Command lines print it after ``error:`` and exit with code 2.
    """

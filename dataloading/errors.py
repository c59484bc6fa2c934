"""The exception for every problem with a user's data, and the messages that several modules share."""

import errno
import os
import resource

HOW_TO_REPAIR = "copy the data set again or prepare it again"


class DatasetError(ValueError):
    """A data set, its source or its destination cannot be used.

    The message is one line for the person at the terminal: the thing, the value found, the value expected and what
    to do next. Commands print it after ``error:`` and exit with code 2.
    """


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> DatasetError:
    """Return a `DatasetError` for a file of a prepared data set that cannot be read because of `error`."""
    remedy = HOW_TO_REPAIR
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        remedy = f"this process may have {limit:,} files open; raise the limit (ulimit -n)"
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return DatasetError(f"cannot read {os.fspath(path)}: {reason}; {remedy}")

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


class SourceChanged(DatasetError):
    """A source file is not the one that was listed when its preparation began."""


class DamagedSample(DatasetError):
    """A sample was read whole, but it is not what was prepared, or it does not decode.

    Only such a sample may be replaced by another one. A file that cannot be read is something else: it stops the run.
    """


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> DatasetError:
    """Return a `DatasetError` for a file of a prepared data set that cannot be read because of `error`."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        remedy = f"this process may have {limit:,} files open; raise the limit (ulimit -n)"
    elif number in (errno.EACCES, errno.EPERM):
        remedy = "give yourself permission to read it"
    elif number in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        remedy = HOW_TO_REPAIR
    else:  # EIO, ESTALE, ...: the data may be whole
        remedy = "check the disk or its connection, and try again"
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return DatasetError(f"cannot read {os.fspath(path)}: {reason}; {remedy}")

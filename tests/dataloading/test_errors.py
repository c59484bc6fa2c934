"""What is said about a file that cannot be read, and what to do."""

import errno
import os

import pytest

from dataloading.errors import HOW_TO_REPAIR, unreadable


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, r"this process may have [\d,]+ files open; raise the limit \(ulimit -n\)"),
        (errno.ENFILE, r"this process may have [\d,]+ files open; raise the limit \(ulimit -n\)"),
        (errno.EACCES, "give yourself permission to read it"),
        (errno.EPERM, "give yourself permission to read it"),
        (errno.ENOENT, HOW_TO_REPAIR),
        (errno.ENOTDIR, HOW_TO_REPAIR),
        (errno.EISDIR, HOW_TO_REPAIR),
        (errno.EIO, "check the disk or its connection, and try again"),
        (errno.ESTALE, "check the disk or its connection, and try again"),
    ],
)
def test_the_remedy_is_that_of_the_cause(number, remedy):
    with pytest.raises(ValueError, match=rf"^cannot read /a/b: {os.strerror(number)}; {remedy}$"):
        raise unreadable("/a/b", OSError(number, os.strerror(number)))


def test_an_error_without_a_number_is_quoted():
    assert str(unreadable("/a/b", ValueError("bad text"))) == f"cannot read /a/b: bad text; {HOW_TO_REPAIR}"
    assert str(unreadable("/a/b", OSError("bad file"))) == f"cannot read /a/b: bad file; {HOW_TO_REPAIR}"

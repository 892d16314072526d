"""Files of a data set, read with a limit: what has the name of a file may be a FIFO, a device, or endless."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_SORTS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading.

    Raises:
        OSError: it cannot be read or is no regular file; `strerror` says why.
    """
    try:
        mode = os.stat(path).st_mode  # before it is opened: a FIFO would wait for somebody to write
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error), path) from error
    if not stat.S_ISREG(mode):
        sort = next((name for is_sort, name in _SORTS if is_sort(mode)), "special")
        raise OSError(errno.EINVAL, f"it is {sort}, not a regular file", path)
    return open(path, "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        limit: the most bytes it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer; `strerror` says why.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise OSError(errno.EINVAL, f"it has {size} bytes, and {limit} are the most that are read", path)
        content = stream.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EINVAL, "it grows while it is read", path)
    return content


def reason(error: OSError) -> str:
    """Why a file could not be read, in a few words."""
    return error.strerror or type(error).__name__

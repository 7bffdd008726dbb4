"""Regular files, opened so that a planted link or FIFO is refused, and read by position.

Files are not mapped: the pages of a map count as this process's memory, and a file that shrinks
under a map ends the process.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a FIFO must not wait


class NotRegularError(OSError):
    """The name belongs to a folder, FIFO, socket or device."""


def open_regular(
    path: str | Path, *, follow: bool = False, dir_fd: int | None = None
) -> tuple[int, os.stat_result]:
    """Open a regular file for reading.

    Args:
        path: Path of the file, relative to `dir_fd` if given.
        follow: Whether the last part of the path may be a link.
        dir_fd: Descriptor of a folder.

    Returns:
        The file's descriptor, which the caller closes, and its status.

    Raises:
        NotRegularError: It is not a regular file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, _FLAGS if follow else _FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.ENXIO, "not a regular file")
    return descriptor, status


def read_full(descriptor: int, buffer: memoryview, start: int) -> int:
    """Fill a buffer from a position of a file; return the bytes read, fewer at its end."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(descriptor, [buffer[filled:]], start + filled)
        if not count:
            break
        filled += count
    return filled

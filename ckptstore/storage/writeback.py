"""Early writeback: the kernel begins to write a file to the disk before an fsync waits for that.

Without it the bytes of a commit lie in the page cache until their fsync, and the disk is idle
meanwhile. It is a hint and promises nothing: only the fsync makes a file durable (ADR 0036).
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: begin to write dirty pages, and wait for none
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ESPIPE}


def begin_writeback(fd: int) -> None:
    """Have the kernel begin to write all bytes of a file to the disk, where it can be asked.

    Args:
        fd: Of the open file.

    Raises:
        OSError: The kernel could not write them. A later fsync may not report this error again, so
            the file has failed.
    """
    begin = _sync_file_range()
    number = begin(fd) if begin else 0
    if number and number not in _NOT_SUPPORTED:
        raise OSError(number, os.strerror(number))


@cache
def _sync_file_range() -> Callable[[int], int] | None:
    """Return a call that returns 0 or an errno; None where the C library has none, as on macOS."""
    if sys.platform != "linux":
        return None
    import ctypes  # here, as most commands write nothing

    library = ctypes.CDLL(None, use_errno=True)
    try:
        sync_file_range = library.sync_file_range
    except AttributeError:
        return None
    sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def begin(fd: int) -> int:
        failed = sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)
        return ctypes.get_errno() if failed else 0

    return begin

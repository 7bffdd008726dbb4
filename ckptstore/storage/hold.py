"""Hold: the exclusive right of a process to a name, by the flock of a file in `tmp/`.

Managers of one process share it; the kernel gives it up when the process ends. The file is removed
with the last of them. A forked child does not inherit it. See docs/adr/0049.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ckptstore import flock
from ckptstore.errors import ConflictError
from ckptstore.forks import close_unshared, free_in_child, open_unshared, renewed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Folder = Callable[[], AbstractContextManager[int]]

HELD = "held-"  # the names of the files begin so
PROBE_SECONDS = 1.0  # another process may hold the lock for a moment to see whether it is free
_POLL_SECONDS = 0.02
_WRITE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _File:
    """A locked file, and the number of holds of this process on it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.count = descriptor, 1


_files: dict[tuple[int, int], _File] = {}  # by device and inode
_lock = free_in_child(threading.RLock())


class Hold:
    """A hold, until `release`. In a forked child it is the parent's, and excludes nobody."""

    def __init__(
        self, file: _File | None = None, remove: Callable[[], None] = lambda: None
    ) -> None:
        self._file, self._remove = file, remove
        renewed(self, Hold._leave_to_parent)

    def touch(self) -> None:
        """Show that it is in use: earlier versions remove temporary files after a day without."""
        if self._file is not None:
            with suppress(OSError):
                os.utime(self._file.descriptor)

    def release(self) -> None:
        """Give it up; does nothing the second time."""
        with _lock:
            file, self._file = self._file, None
            if file is None:
                return
            file.count -= 1
            if file.count:
                return
            for key in [key for key, other in _files.items() if other is file]:
                del _files[key]
            self._remove()  # while it is locked, so that nobody holds a file without a name
            close_unshared(file.descriptor)

    def _leave_to_parent(self) -> None:
        self._file = None


renewed(Hold, lambda _: _files.clear())


def hold(folder: Folder, name: str, *, mode: int) -> Hold:
    """Hold a name in a folder.

    Where no file can be locked, as in a folder that may not be written to, the hold excludes
    nobody.

    Args:
        folder: Opens the folder and yields its descriptor.
        name: The name of the file.
        mode: Its permissions.

    Raises:
        ConflictError: Another process holds it; the message is only who that is.
    """

    def remove() -> None:
        with suppress(OSError), folder() as fd:
            os.unlink(name, dir_fd=fd)

    until = time.monotonic() + PROBE_SECONDS
    with _lock:
        while True:
            try:
                with folder() as fd:
                    file = _taken(fd, name, mode)
            except OSError:
                return Hold()
            if isinstance(file, _File):
                return Hold(file, remove)
            if time.monotonic() >= until:
                raise ConflictError(file)
            time.sleep(_POLL_SECONDS)


def holder(folder: Folder, name: str) -> str | None:
    """Return the process that holds a name in a folder, in words; None if there is none."""
    with _lock, suppress(OSError), folder() as fd:
        descriptor = open_unshared(name, _READ, dir_fd=fd)
        try:
            return None if flock.try_to_acquire(descriptor) else flock.holder(descriptor)
        finally:
            close_unshared(descriptor)
    return None


def _taken(within: int, name: str, mode: int) -> _File | str:
    """Lock a file, or count another hold on it; or return the process that has locked it."""
    try:
        descriptor = open_unshared(name, _WRITE, mode, dir_fd=within)
    except PermissionError:  # the file of another user, or a folder that may only be read
        descriptor = open_unshared(name, _READ, dir_fd=within)
    try:
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        if key in _files:
            close_unshared(descriptor)
            _files[key].count += 1
            return _files[key]
        if flock.try_to_acquire(descriptor):
            if _inode(name, within) == key:
                return _files.setdefault(key, _File(descriptor))
            who = "another process"  # which has removed this file just now
        else:
            who = flock.holder(descriptor)
    except OSError:
        close_unshared(descriptor)
        raise
    close_unshared(descriptor)
    return who


def _inode(name: str, within: int) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if it is missing."""
    try:
        status = os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino

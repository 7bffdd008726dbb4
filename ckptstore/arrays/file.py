"""Arrays that lie in a file, read by position as they are wanted.

Not mapped: pages of a map count as this process's memory, and a file that shrinks under a map ends the process.
"""

from __future__ import annotations

import os
import stat
import tempfile
import weakref
from errno import EMFILE
from typing import TYPE_CHECKING, BinaryIO

from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.chunks import DIMENSIONS_MAX
from ckptstore.errors import InvalidInputError, StorageError, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not be waited for


class OpenFile:
    """A regular file that several arrays read; it is closed when the last of them is gone."""

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        """follow: whether the path may be a link; a name from inside a folder may not."""
        flags = _FLAGS if follow else _FLAGS | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            what_helps = " Allow this process more (ulimit -n)." if error.errno == EMFILE else ""
            raise StorageError(
                f"{shown(str(path))} could not be read: {error.strerror}.{what_helps}"
            ) from error
        self._take(descriptor, path)

    def _take(self, descriptor: int, path: Path) -> None:
        """Begin to read an open file, and answer for closing it."""
        self.path, self._descriptor = path, descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._close()
            raise InvalidInputError(f"{path} is not a regular file.")
        self.nbytes = status.st_size
        self._stamp = status.st_size, status.st_mtime_ns

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from this position of the file; InvalidInputError when the file was changed since it was opened."""
        filled = 0
        try:
            while filled < len(buffer):
                count = os.preadv(self._descriptor, [buffer[filled:]], start + filled)
                if not count:
                    break
                filled += count
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise StorageError(f"{self.path} could not be read: {error.strerror}.") from error
        if filled < len(buffer) or self._is_changed(status):
            raise InvalidInputError(
                f"{self.path} was changed while it was read. Read it again once nobody writes to it."
            )

    def read(self, start: int, size: int) -> bytes:
        """So many bytes from this position of the file."""
        data = bytearray(size)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def _is_changed(self, status: os.stat_result) -> bool:
        return (status.st_size, status.st_mtime_ns) != self._stamp


class Scratch(OpenFile):
    """A file without a name, for all that has to be unpacked from another; it is gone once nobody reads it.

    One file, however much is unpacked, as a process may have only so many of them open. path: of the other file, for errors.
    """

    _descriptor = -1  # until something is written

    def __init__(self, path: Path) -> None:
        self.path, self.nbytes = path, 0

    def add(self, write: Callable[[BinaryIO], None]) -> int:
        """Have something written to the end of the file: where it begins. StorageError when there is no room for it."""
        try:
            if self._descriptor < 0:
                with tempfile.TemporaryFile() as file:
                    self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
            with os.fdopen(os.dup(self._descriptor), "r+b") as file:
                begin = file.seek(self.nbytes)
                write(file)
                self.nbytes = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise StorageError(
                f"There is no room in the folder for temporary files to unpack {self.path}: {error.strerror}. Set TMPDIR to "
                "a folder that has more."
            ) from error
        return begin

    def _is_changed(self, status: os.stat_result) -> bool:
        del status  # only this process knows the file
        return False


class FileArray(LazyArray):
    """An array whose bytes lie in a file from `offset` on, in C order, little-endian.

    That they lie within the file is for whoever makes one to check.
    """

    def __init__(
        self,
        file: OpenFile,
        *,
        kind: str,
        dtype: str,
        shape: tuple[int, ...],
        offset: int,
        identity: object = None,
    ) -> None:
        if len(shape) > DIMENSIONS_MAX:
            raise InvalidInputError(
                f"{file.path} has an array of {len(shape)} dimensions; a checkpoint holds at most {DIMENSIONS_MAX}."
            )
        self.file, self.offset = file, offset
        self.kind, self.dtype, self.shape, self.identity = kind, dtype, shape, identity

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        self.file.read_into(buffer, self.offset + start)

"""Files that arrays are read from, by position as they are needed.

`OpenFile` is a file of the user's, `Scratch` one of this process for what has to be unpacked first.
An array reads either; see `ByteSource`.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from errno import EMFILE
from typing import TYPE_CHECKING, BinaryIO, Protocol

from ckptstore.errors import InvalidInputError, StorageError, shown
from ckptstore.regular_file import NotRegularError, open_regular, read_full

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class ByteSource(Protocol):
    """Bytes that arrays read by position. `path` names them in errors."""

    path: Path
    nbytes: int

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from a position, or raise InvalidInputError or StorageError."""

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from a position."""
        data = bytearray(size)
        self.read_into(memoryview(data), start)
        return bytes(data)


class OpenFile(ByteSource):
    """A regular file that several arrays read. It is closed when the last of them is gone.

    Args:
        path: Path of the file.
        follow: Whether it may be a link. A name that was found inside a folder may not.

    Raises:
        InvalidInputError: It is not a regular file.
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        try:
            self._descriptor, status = open_regular(path, follow=follow)
        except NotRegularError as error:
            raise InvalidInputError(f"{path} is not a regular file.") from error
        except OSError as error:
            hint = " Allow this process more (ulimit -n)." if error.errno == EMFILE else ""
            raise StorageError(
                f"{shown(str(path))} could not be read: {error.strerror}.{hint}"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        self.path, self.nbytes = path, status.st_size
        self._stamp = _stamp(status)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer; InvalidInputError if the file has changed since it was opened."""
        try:
            filled = read_full(self._descriptor, buffer, start)
            stamp = _stamp(os.fstat(self._descriptor))
        except OSError as error:
            raise StorageError(f"{self.path} could not be read: {error.strerror}.") from error
        if filled < len(buffer) or stamp != self._stamp:
            raise InvalidInputError(
                f"{self.path} was changed while it was read. Read it again when no program "
                "writes to it any more."
            )


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class Scratch(ByteSource):
    """A nameless temporary file for everything that is unpacked from another file.

    There is one for each file read, whatever is unpacked, because the number of open files
    is limited. It is removed when the last array that reads it is gone.

    Args:
        path: Path of the file that is unpacked, for errors.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.nbytes = path, 0
        self._descriptor: int | None = None  # until something is written

    def add(self, write: Callable[[BinaryIO], None]) -> int:
        """Append what a function writes, and return the position where it begins.

        Raises:
            StorageError: There is no room for it.
        """
        try:
            if self._descriptor is None:
                with tempfile.TemporaryFile() as file:
                    self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
            with os.fdopen(os.dup(self._descriptor), "r+b") as file:
                begin = file.seek(self.nbytes)
                write(file)
                self.nbytes = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise StorageError(
                f"There is no room in the folder for temporary files to unpack {self.path}: "
                f"{error.strerror}. Set TMPDIR to a folder that has more."
            ) from error
        return begin

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from a position of what was added."""
        try:
            filled = 0 if self._descriptor is None else read_full(self._descriptor, buffer, start)
        except OSError as error:
            raise StorageError(f"{self.path} could not be read: {error.strerror}.") from error
        if filled < len(buffer):
            raise InvalidInputError(f"{self.path} ends early.")

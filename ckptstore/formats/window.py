"""A part of a file as a file of its own, for readers such as zipfile and pickle.

A reader may ask for as many bytes at once as the file claims to have. A window limits that, so a
small file cannot make a process allocate much.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.arrays.file import ByteSource

READ_BYTES_MAX = 8 << 20


class ReadTooLargeError(ValueError):
    """A reader asked for more bytes at once than any file that is not hostile needs."""


class Window(io.RawIOBase):
    """Bytes `start` to `start + size` of a file.

    Args:
        file: What to read.
        start: Position of the first byte.
        size: Number of bytes; None for all bytes up to the end of the file.
        read_bytes_max: Most bytes that one read may ask for.
    """

    def __init__(
        self,
        file: ByteSource,
        *,
        start: int = 0,
        size: int | None = None,
        read_bytes_max: int = READ_BYTES_MAX,
    ) -> None:
        self.file, self.start = file, start
        self.size = file.nbytes - start if size is None else size
        self._position, self._read_bytes_max = 0, read_bytes_max

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; OSError for one before the beginning, which zipfile expects."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("it points before its beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or all that are left."""
        left = max(0, self.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > self._read_bytes_max:
            raise ReadTooLargeError(
                f"it needs {size} bytes at once; at most {self._read_bytes_max} are read"
            )
        data = self.file.read(self.start + self._position, size)
        self._position += size
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as possible; return the number of bytes read."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

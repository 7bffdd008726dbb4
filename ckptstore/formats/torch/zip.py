"""The zip archives that torch.save writes: records by name, stored as they are, in a file or in a part of one."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import zip_directory
from ckptstore.formats.zip_directory import HEADER_BYTES

if TYPE_CHECKING:
    from ckptstore.arrays.file import OpenFile

READ_BYTES_MAX = 8 << 20  # at once; of a pickle
PICKLE_BYTES_MAX = 64 << 20


class Window(io.RawIOBase):
    """A part of a file as a file of its own, of which only so many bytes may be read at once."""

    def __init__(self, file: OpenFile, *, start: int = 0, size: int | None = None) -> None:
        self.file, self.start = file, start
        self.size = file.nbytes - start if size is None else size
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or what is left."""
        left = max(0, self.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > READ_BYTES_MAX:
            raise ValueError(f"{size} bytes at once, where at most {READ_BYTES_MAX} are read")
        data = self.file.read(self.start + self._position, size)
        self._position += size
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as possible: the bytes that were read."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Archive:
    """The records of one archive. InvalidInputError when it is none, or holds code or compressed records."""

    def __init__(self, window: Window) -> None:
        self._window = window
        try:
            found = zip_directory.records(self._read, window.size)
        except zip_directory.TooManyRecordsError as error:
            raise InvalidInputError(
                f"{window.file.path} has too many records: {error}. Save its state in several files."
            ) from error
        except ValueError as error:
            raise self.invalid(f"{error}.") from error
        folder = next(iter(found), b"").partition(b"/")[0] + b"/"
        self._records = {
            name.removeprefix(folder): record
            for name, record in found.items()
            if name.startswith(folder)
        }
        if "constants.pkl" in self:
            raise InvalidInputError(
                f"{window.file.path} is a TorchScript archive, which holds code. If you trust it, load it yourself and commit "
                "its state_dict."
            )
        if not all(record.is_plain for record in found.values()):
            raise self.invalid("it is compressed or encrypted. Unpack it yourself if you trust it.")

    def invalid(self, why: str) -> InvalidInputError:
        """An error that says why this is not such an archive."""
        return InvalidInputError(
            f"{self._window.file.path} is not a file that torch.save wrote: {why}"
        )

    def __contains__(self, name: str) -> bool:
        return os.fsencode(name) in self._records

    def place(self, name: str) -> tuple[int, int]:
        """Where a record's bytes begin in the file, and how many there are."""
        if name not in self:
            raise self.invalid(f"it has no record {shown(name)}.")
        at, size, _ = self._records[os.fsencode(name)]
        room = self._window.size - at - HEADER_BYTES
        if room < 0:
            raise self.invalid(f"its record {shown(name)} lies outside of it.")
        behind = zip_directory.behind_header(self._read(at, HEADER_BYTES))
        if behind is None or behind - HEADER_BYTES + size > room:
            raise self.invalid(f"its record {shown(name)} lies beyond its end, or has no header.")
        return self._window.start + at + behind, size

    def read(self, name: str, *, bytes_max: int = PICKLE_BYTES_MAX) -> bytes:
        """The bytes of a small record."""
        start, size = self.place(name)
        if size > bytes_max:
            raise self.invalid(
                f"its record {shown(name)} has {size} bytes; at most {bytes_max} are read."
            )
        return self._window.file.read(start, size)

    def _read(self, start: int, size: int) -> bytes:
        return self._window.file.read(self._window.start + start, size)

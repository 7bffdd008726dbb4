"""The zip archives that torch.save writes: records by name, stored as they are, in a file or in a part of one."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from ckptstore.formats.file_array import OpenFile

READ_BYTES_MAX = 8 << 20  # of a directory: about 120,000 records, half a second of zipfile's time
PICKLE_BYTES_MAX = 64 << 20
MAGIC = b"PK\x03\x04"
_HEADER = struct.Struct(
    "<4s22xHH"
)  # of a record: the lengths of its name and of what else there is
_ENCRYPTED = 1


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
            raise ValueError(
                f"{size} bytes of a directory, where at most {READ_BYTES_MAX} are read"
            )
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
            with zipfile.ZipFile(window) as archive:
                entries = archive.infolist()
        except InvalidInputError:
            raise
        except Exception as error:
            raise self.invalid(f"{str(error)[:200]}.") from error
        prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
        self._entries = {
            entry.filename.removeprefix(prefix): entry
            for entry in entries
            if entry.filename.startswith(prefix)
        }
        if "constants.pkl" in self:
            raise InvalidInputError(
                f"{window.file.path} is a TorchScript archive, which holds code. If you trust it, load it yourself and commit "
                "its state_dict."
            )
        self._check(entries)

    def invalid(self, why: str) -> InvalidInputError:
        """An error that says why this is not such an archive."""
        return InvalidInputError(
            f"{self._window.file.path} is not a file that torch.save wrote: {why}"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def place(self, name: str) -> tuple[int, int]:
        """Where a record's bytes begin in the file, and how many there are."""
        entry = self._entries.get(name)
        if entry is None:
            raise self.invalid(f"it has no record {shown(name)}.")
        window = self._window
        room = window.size - entry.header_offset - _HEADER.size
        if room < 0 or entry.header_offset < 0:
            raise self.invalid(f"its record {shown(name)} lies outside of it.")
        header = window.file.read(window.start + entry.header_offset, _HEADER.size)
        magic, *lengths = _HEADER.unpack(header)
        if magic != MAGIC or sum(lengths) + entry.file_size > room:
            raise self.invalid(f"its record {shown(name)} lies beyond its end, or has no header.")
        start = window.start + entry.header_offset + _HEADER.size + sum(lengths)
        return start, entry.file_size

    def read(self, name: str, *, bytes_max: int = PICKLE_BYTES_MAX) -> bytes:
        """The bytes of a small record."""
        start, size = self.place(name)
        if size > bytes_max:
            raise self.invalid(
                f"its record {shown(name)} has {size} bytes; at most {bytes_max} are read."
            )
        return self._window.file.read(start, size)

    def _check(self, entries: list[zipfile.ZipInfo]) -> None:
        """Refuse what unpacks to more than it is: torch.save packs without compressing."""
        is_plain = all(
            entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
            for entry in entries
        )
        if not is_plain or sum(entry.file_size for entry in entries) > self._window.size:
            raise self.invalid(
                "it unpacks to more than it holds, or is compressed. Unpack it yourself if you trust it."
            )
        if len({entry.filename for entry in entries}) < len(entries):
            raise self.invalid("it has two records of one name.")

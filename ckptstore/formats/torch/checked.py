"""Compare records of an archive with their CRC-32 before any of their bytes are used.

The check reads a whole record when its first byte is requested, in the requesting thread. So a
commit checks the records it reads, with all its threads. torch can be configured to write no CRC
(`torch.serialization.set_crc32_options`); such records are read without a check.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from ckptstore.arrays.file import ByteSource
from ckptstore.errors import InvalidInputError, shown
from ckptstore.forks import free_in_child

if TYPE_CHECKING:
    from pathlib import Path

PIECE_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class _Record:
    name: str
    size: int
    crc: int
    is_checked: bool = False
    lock: Lock = field(default_factory=lambda: free_in_child(Lock()))


class CheckedRecords(ByteSource):
    """A file in which some ranges of bytes have a CRC-32.

    Args:
        file: The file to read.
    """

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self.path: Path = file.path
        self.nbytes = file.nbytes
        self._starts: list[int] = []
        self._records: dict[int, _Record] = {}

    def add(self, name: str, *, start: int, size: int, crc: int) -> None:
        """Check a range of bytes before its first byte is read. A CRC of 0 means no check."""
        if crc and size and start not in self._records:
            insort(self._starts, start)
            self._records[start] = _Record(name=name, size=size, crc=crc)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer; InvalidInputError if the record there is damaged."""
        place = bisect_right(self._starts, start) - 1
        if place >= 0:
            begin = self._starts[place]
            record = self._records[begin]
            if not record.is_checked and start < begin + record.size:
                self._check(begin, record)
        self._file.read_into(buffer, start)

    def _check(self, begin: int, record: _Record) -> None:
        with record.lock:
            if record.is_checked:
                return
            crc, end = 0, begin + record.size
            piece = memoryview(bytearray(min(PIECE_BYTES, record.size)))
            for start in range(begin, end, PIECE_BYTES):
                part = piece[: end - start]
                self._file.read_into(part, start)
                crc = zlib.crc32(part, crc)
            if crc != record.crc:
                raise InvalidInputError(
                    f"{self.path} is damaged: the bytes of its record {shown(record.name)} do not "
                    "match the CRC that the file states. Get another copy of the file."
                )
            record.is_checked = True

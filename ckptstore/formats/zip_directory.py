"""The directory at the end of a zip archive: its records and their places.

zipfile takes five times as long, and the time sets the number of records above which a file is
refused. The format is described in PKWARE's APPNOTE.TXT, 4.3. Archives that span several disks, or
that follow other data, are not supported.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIRECTORY_BYTES_MAX = 16 << 20  # some 250,000 records
MAGIC = b"PK\x03\x04"  # of a record's header
_END = struct.Struct("<4s8xLLH")  # the directory's size and position, the length of the comment
_END64 = struct.Struct("<4s36xQQ")
_LOCATOR = struct.Struct("<4s4xQ4x")  # where the end record of a large archive begins
_ENTRY = struct.Struct("<4s4xHH4xLLLHHH8xL")
_HEADER = struct.Struct("<4s22xHH")  # of a record: the lengths of its name and extra fields
_ELSEWHERE = (1 << 32) - 1  # in place of a number that needs 64 bits
_LARGE = 1  # the kind of extra field that has them
_COMMENT_BYTES_MAX = (1 << 16) - 1
_ENCRYPTED, _STORED = 1, 0

HEADER_BYTES = _HEADER.size


class Record(NamedTuple):
    """A record: where its header begins, its unpacked size and CRC, and if it is stored plainly."""

    header: int
    size: int
    is_plain: bool
    crc: int


class CutShortError(ValueError):
    """The archive begins as one, and lacks its end."""


class TooManyRecordsError(ValueError):
    """The archive has more records than any checkpoint needs."""


def records(read: Callable[[int, int], bytes], size: int) -> dict[bytes, Record]:
    """Return every record by its name, in order.

    Args:
        read: Returns bytes of the archive, given a position and a number of bytes.
        size: The size of the archive in bytes.

    Raises:
        ValueError: It is not an archive, or it contradicts itself.
        TooManyRecordsError: Its directory is too long to be read.
    """
    begin, length = _place(read, size)
    if length > DIRECTORY_BYTES_MAX:
        raise TooManyRecordsError(
            f"its directory has {length} bytes, and at most {DIRECTORY_BYTES_MAX} are read"
        )
    data = read(begin, length)
    found: dict[bytes, Record] = {}
    count = 0
    for name, record in _entries(data):
        found[name] = record
        count += 1
    if len(found) < count:
        raise ValueError("it has two records of one name")
    if sum(record.size for record in found.values() if record.is_plain) > size:
        raise ValueError("its records are longer than it is")
    return found


def cut_short(path: Path) -> InvalidInputError:
    """Return the error for a file of which `records` raised CutShortError."""
    return InvalidInputError(
        f"{path} is cut short, as an interrupted copy or a full disk leaves it: the directory at "
        "its end is missing. Get the file again."
    )


def behind_header(header: bytes) -> int | None:
    """Return where a record's bytes begin, from the start of its header; None without a header."""
    magic, *lengths = _HEADER.unpack(header)
    return _HEADER.size + sum(lengths) if magic == MAGIC else None


def _place(read: Callable[[int, int], bytes], size: int) -> tuple[int, int]:
    """The position and size of the directory."""
    tail_bytes = min(size, _END.size + _COMMENT_BYTES_MAX)
    tail = read(size - tail_bytes, tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > tail_bytes:
        if read(0, len(MAGIC)) == MAGIC:
            raise CutShortError("it is cut short: the directory of its records is missing")
        raise ValueError("it has no directory at its end")
    _, length, begin, comment = _END.unpack_from(tail, at)
    end = size - tail_bytes + at
    if end + _END.size + comment != size:
        raise ValueError("its directory is not at its end")
    if end >= _LOCATOR.size:
        magic, where = _LOCATOR.unpack(read(end - _LOCATOR.size, _LOCATOR.size))
        if magic == b"PK\x06\x07":
            if where + _END64.size > end:
                raise ValueError("its directory is outside of it")
            magic, length, begin = _END64.unpack(read(where, _END64.size))
            if magic != b"PK\x06\x06":
                raise ValueError("its directory is not where its end record states")
    if begin + length > end:
        raise ValueError("its directory is outside of it")
    return begin, length


def _entries(data: bytes) -> Iterator[tuple[bytes, Record]]:
    """The records that a directory lists."""
    at, unpack = 0, _ENTRY.unpack_from
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise ValueError("its directory is cut off")
        magic, flags, method, crc, packed, size, name, extra, comment, start = unpack(data, at)
        if magic != b"PK\x01\x02":
            raise ValueError("its directory lists something else than records")
        is_plain = method == _STORED and not flags & _ENCRYPTED
        behind = at + _ENTRY.size + name
        if behind + extra + comment > len(data):
            raise ValueError("its directory is cut off")
        if _ELSEWHERE in (packed, size, start):
            packed, size, start = _large(data[behind : behind + extra], [size, packed, start])
        if is_plain and packed != size:
            raise ValueError("a record unpacks to another length than it has")
        yield data[at + _ENTRY.size : behind], Record(start, size, is_plain, crc)
        at = behind + extra + comment


def _large(extra: bytes, numbers: list[int]) -> tuple[int, int, int]:
    """The packed size, size and place of a record of which some need 64 bits.

    numbers: the size, packed size and place that the directory has.
    """
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        values = extra[at + 4 : at + 4 + length]
        if kind == _LARGE:
            wide = list(struct.unpack_from(f"<{len(values) // 8}Q", values))
            if len(wide) < numbers.count(_ELSEWHERE):
                break
            size, packed, start = (
                wide.pop(0) if number == _ELSEWHERE else number for number in numbers
            )
            return packed, size, start
        at += 4 + length
    raise ValueError("a record is too large for its directory entry")

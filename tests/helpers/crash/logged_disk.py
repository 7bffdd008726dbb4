"""A disk of which every write and every flush is known: one file of a FUSE file system.

The file system is served by `serve`, which speaks the protocol of /dev/fuse (linux/fuse.h, version
7.31). It has two files. `disk` is in memory; a loop device over it passes on each write as a write,
and each flush as an fsync. It offers no writes with FUA: the kernel makes them a write and a flush.
`marks` is for programs to report what they have done, in the order of the writes.
"""

from __future__ import annotations

import errno
import os
import pickle
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ROOT, DISK, MARKS = 1, 2, 3  # inodes
NAMES = {b"disk": DISK, b"marks": MARKS}
WRITE_BYTES_MAX = 1 << 20
_HEADER = struct.Struct("<IIQQIIII")  # length, operation, request, inode; uid, gid, pid, reserved
_REPLY = struct.Struct("<IiQ")  # length, -errno, request
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_DIRECT_IO = 1  # no page cache: each write arrives by itself, and before it returns


class _Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


_UNANSWERED = (_Op.FORGET, _Op.INTERRUPT, _Op.BATCH_FORGET)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written to the disk."""

    start: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """All writes before it are durable."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a program reported."""

    text: bytes


Entry = Write | Flush | Mark


def serve(fd: int, image: bytes, log: Path) -> None:
    """Answer the requests of a mounted /dev/fuse until it is unmounted; then pickle the log.

    Args:
        fd: An open /dev/fuse.
        image: What the disk holds at first.
        log: The file for the list of entries.
    """
    server = _Server(image)
    while True:
        try:
            request = os.read(fd, WRITE_BYTES_MAX + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                break
            if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # an interrupted request
                continue
            raise
        _, op, unique, node, *_ = _HEADER.unpack_from(request)
        if op in _UNANSWERED:
            continue
        answer = server.answer(op, node, request[_HEADER.size :])
        data, code = (b"", answer) if isinstance(answer, int) else (answer, 0)
        try:
            os.write(fd, _REPLY.pack(_REPLY.size + len(data), -code, unique) + data)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the request was interrupted
                raise
    log.write_bytes(pickle.dumps(server.log))


class _Server:
    """The two files, and the log."""

    def __init__(self, image: bytes) -> None:
        self.log: list[Entry] = []
        self._disk = bytearray(image)

    def answer(self, op: int, node: int, body: bytes) -> bytes | int:
        """The answer to a request, or the number of an error."""
        match op:
            case _Op.INIT:
                _, minor, readahead, _ = struct.unpack_from("<IIII", body)
                flags = _BIG_WRITES | _MAX_PAGES
                limits = (64, 48, WRITE_BYTES_MAX, 1, WRITE_BYTES_MAX >> 12)
                version = (7, min(minor, 31), readahead, flags)
                return struct.pack("<IIIIHHIIHHI28x", *version, *limits, 0, 0)
            case _Op.LOOKUP:
                found = NAMES.get(body.rstrip(b"\0"))
                if found is None:
                    return errno.ENOENT
                return struct.pack("<QQQQII", found, 0, 1, 0, 0, 0) + self._attributes(found)
            case _Op.GETATTR | _Op.SETATTR:
                return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
            case _Op.OPEN:
                return struct.pack("<QIi", node, _DIRECT_IO, 0)
            case _Op.READ:
                _, start, size = struct.unpack_from("<QQI", body)
                return bytes(self._disk[start : start + size]) if node == DISK else b""
            case _Op.WRITE:
                _, start, size = struct.unpack_from("<QQI", body)
                self._write(node, start, body[40 : 40 + size])
                return struct.pack("<II", size, 0)
            case _Op.FSYNC:
                if node == DISK:
                    self.log.append(Flush())
                return b""
            case _Op.STATFS:
                return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
            case _Op.RELEASE | _Op.FLUSH:
                return b""
        return errno.ENOSYS

    def _write(self, node: int, start: int, data: bytes) -> None:
        if node == DISK:
            self._disk[start : start + len(data)] = data
            self.log.append(Write(start, data))
        else:
            self.log.append(Mark(data))

    def _attributes(self, node: int) -> bytes:
        mode = 0o40755 if node == ROOT else 0o100666
        size = len(self._disk) if node == DISK else 0
        numbers = (node, size, size >> 9, 0, 0, 0)
        return struct.pack("<QQQQQQIIIIIIIIII", *numbers, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

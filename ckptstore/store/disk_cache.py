"""DiskCache: immutable bytes by digest in a folder of the user, which need not be sent again.

All processes of the user share the folder. There is no index and no lock: an entry is a file named
by its digest, written under another name and renamed, and the time of the file says when it was
last used. Every entry is compared with its digest whenever it is used, so an entry that is damaged,
cut or planted is only a miss. Nothing is flushed, and no failure of the cache reaches its callers:
the folder may be deleted, full or read-only at any time (docs/adr/0063).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from ckptstore.errors import InvalidInputError, shown
from ckptstore.forks import free_in_child
from ckptstore.regular_file import open_regular, read_full

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

    from ckptstore.digest import Digest

FOLDER_VARIABLE, BYTES_VARIABLE = "CKPTSTORE_CACHE", "CKPTSTORE_CACHE_BYTES"
BYTES_MAX_DEFAULT = 10 << 30
ENTRY_SHARE = 16  # larger bytes than this part of the cache are passed by
ROOM_SHARE = 16  # of what is free, as much may be written before the folder is looked at again
FULL, EVICTED = 0.9, 0.8  # parts of the cache: when it counts as full, and what is left then
BLOCK_BYTES = 4096  # the room that a small file takes
STEP_BYTES = 1 << 20  # read and hashed at a time, while it is in the core's cache
PAUSE_SECONDS = 60.0  # without writes, after one that failed
TAG = "CACHEDIR.TAG"  # which keeps backups away (https://bford.info/cachedir)
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of ckptstore; safe to delete.\n"

_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]+)?")  # of an entry, or of one being written
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    used: int  # nanoseconds since 1970
    path: str
    room: int


class DiskCache:
    """Bytes by digest in a folder, the most recently used ones.

    Args:
        folder: The folder, which is made if it is missing. None for a cache that keeps nothing.
        bytes_max: The room that all entries together may take. Each further process that writes at
            the same time may add a sixteenth of what was free when it looked.
    """

    def __init__(self, folder: Path | None, *, bytes_max: int = BYTES_MAX_DEFAULT) -> None:
        self._bytes_max = bytes_max
        self._folder = folder if folder and bytes_max and _is_private(folder) else None
        self._lock = free_in_child(threading.Lock())
        self._room = 0  # that may be taken before the next look at the folder
        self._paused_until = 0.0  # by the monotonic clock

    def __contains__(self, digest: Digest) -> bool:
        return self._folder is not None and os.path.exists(self._path(digest))

    def get(self, digest: Digest, *, bytes_max: int) -> bytes | None:
        """Return the bytes of a digest, checked; None when they are not here."""
        entry = self._open(digest)
        if entry is None:
            return None
        descriptor, status = entry
        try:
            if status.st_size <= bytes_max:
                data = bytearray(status.st_size)
                if self._fill(descriptor, memoryview(data), 0) == digest:
                    return bytes(data)
        finally:
            os.close(descriptor)
        self._drop(digest)
        return None

    def read_into(self, digest: Digest, buffer: memoryview) -> bool:
        """Fill a buffer of exactly the right size with the bytes of a digest, checked.

        False when they are not here. The content of the buffer is undefined then.
        """
        return self._read(digest, buffer, None, digest)

    def read_range(
        self, digest: Digest, buffer: memoryview, *, start: int, expected: Digest
    ) -> bool:
        """Fill a buffer with a part of the bytes of a digest, by the digest of that part.

        The part may also be here by itself.
        """
        return self._read(expected, buffer, None, expected) or self._read(
            digest, buffer, start, expected
        )

    def put(self, digest: Digest, data: Buffer) -> None:
        """Keep bytes whose digest the caller has compared, if there is room for them."""
        view = memoryview(data).cast("B")
        if self._folder is None or not self._take_room(len(view)):
            return
        try:
            try:
                self._write(digest, view)
            except FileNotFoundError:  # the folder was deleted
                if not _is_private(self._folder):
                    raise
                self._write(digest, view)
        except OSError:
            self._pause()

    def _read(
        self, digest: Digest, buffer: memoryview, start: int | None, expected: Digest
    ) -> bool:
        """Fill a buffer from an entry, at a position or with all of it."""
        entry = self._open(digest)
        if entry is None:
            return False
        descriptor, status = entry
        try:
            has_size = start is not None or status.st_size == len(buffer)
            if has_size and self._fill(descriptor, buffer, start or 0) == expected:
                return True
        finally:
            os.close(descriptor)
        self._drop(digest)
        return False

    def _open(self, digest: Digest) -> tuple[int, os.stat_result] | None:
        """Open an entry, which is used now."""
        if self._folder is None:
            return None
        try:
            descriptor, status = open_regular(self._path(digest))
        except OSError:  # a planted link is an error too
            return None
        with suppress(OSError):
            os.utime(descriptor)
        return descriptor, status

    @staticmethod
    def _fill(descriptor: int, buffer: memoryview, start: int) -> str:
        """Fill a buffer from a position of a file and return its digest; "" for a failed read."""
        hasher = blake3()
        try:
            for begin in range(0, len(buffer), STEP_BYTES):
                step = buffer[begin : begin + STEP_BYTES]
                if read_full(descriptor, step, start + begin) < len(step):
                    return ""
                hasher.update(step)
        except OSError:
            return ""
        return hasher.hexdigest()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder or "", name)

    def _drop(self, digest: Digest) -> None:
        with suppress(OSError):
            os.unlink(self._path(digest))

    def _write(self, digest: Digest, data: memoryview) -> None:
        """Write a file and give it its name, so that no reader sees a part of it."""
        path = self._path(f"{digest}.{secrets.token_hex(8)}")
        descriptor = os.open(path, _NEW, 0o600)
        try:
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
            finally:
                os.close(descriptor)
            os.rename(path, self._path(digest))
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def _pause(self) -> None:
        """Write nothing for a while: the disk is full, or nothing can be written there."""
        self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _take_room(self, size: int) -> bool:
        """Take the room for an entry, after evicting others if need be; False if there is none."""
        size = _room_of(size)
        if size > self._bytes_max // ENTRY_SHARE or time.monotonic() < self._paused_until:
            return False
        with self._lock:
            if size > self._room:
                self._room = self._look(size)
            if size > self._room:
                self._pause()
                return False
            self._room -= size
        return True

    def _look(self, size: int) -> int:
        """Return the room that may be taken before the next look, at best enough for an entry.

        The sixteenth part of what is free: other processes take theirs. The cache is also content
        with half of what the disk has left.
        """
        entries = self._entries()
        total = sum(entry.room for entry in entries)
        if total + size > FULL * self._bytes_max:
            for entry in entries:
                if total <= EVICTED * self._bytes_max:
                    break
                with suppress(OSError):
                    os.unlink(entry.path)
                total -= entry.room
        room = self._bytes_max - total
        with suppress(OSError):
            disk = os.statvfs(self._path(""))
            room = min(room, disk.f_bavail * disk.f_frsize // 2)
        return min(room, max(room // ROOM_SHARE, size))

    def _entries(self) -> list[_Entry]:
        """The entries, and what dead writers left, the least recently used first."""
        found: list[_Entry] = []
        with suppress(OSError), os.scandir(self._path("")) as listed:
            for item in listed:
                if not _NAME.fullmatch(item.name):
                    continue
                with suppress(OSError):
                    status = item.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        room = _room_of(status.st_size)
                        found.append(_Entry(status.st_mtime_ns, item.path, room))
        return sorted(found)


NO_CACHE = DiskCache(None)


def default_cache() -> DiskCache:
    """Return the cache of this user.

    $CKPTSTORE_CACHE names its folder; by default it is "ckptstore" in $XDG_CACHE_HOME or ~/.cache.
    $CKPTSTORE_CACHE_BYTES is its size, 10 GiB by default, and 0 turns it off.

    Raises:
        InvalidInputError: The size is not a number.
    """
    text = os.environ.get(BYTES_VARIABLE, "").strip() or str(BYTES_MAX_DEFAULT)
    if not text.isdecimal():
        raise InvalidInputError(
            f"The environment variable {BYTES_VARIABLE} is {shown(text)}; a number of bytes is "
            "expected, 0 for no cache."
        )
    return _cache_in(_folder(os.environ), int(text))


def _folder(environment: Mapping[str, str]) -> Path | None:
    """The folder of the cache; None where the user has no home."""
    if named := environment.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    with suppress(RuntimeError):
        base = Path(environment.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "ckptstore"
    return None


@cache
def _cache_in(folder: Path | None, bytes_max: int) -> DiskCache:
    """The one cache of this process in a folder."""
    return DiskCache(folder, bytes_max=bytes_max)


def _is_private(folder: Path) -> bool:
    """Make a folder, unless it is there, and return True if no other user can write to it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            (folder / TAG).write_text(TAG_TEXT)
        status = folder.stat()
    except OSError:
        return False
    if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return True
    _log.warning(
        "The cache in %s is not used, as other users can write there. Run chmod 700, or set %s.",
        folder,
        FOLDER_VARIABLE,
    )
    return False


def _room_of(size: int) -> int:
    """The room that a file takes."""
    return -(-max(size, 1) // BLOCK_BYTES) * BLOCK_BYTES

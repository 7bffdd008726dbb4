"""MemoryStorage: a dict. For tests, and for comparing what is not stored."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.forks import free_in_child
from ckptstore.storage.diskless import DisklessStorage
from ckptstore.storage.protocol import Listed, check_key, first_part, refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Seen


class MemoryStorage(DisklessStorage):
    """Bytes by key, in the memory of this process.

    Args:
        name: The name under which `memory://NAME` finds it again.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.url = f"memory://{name}"
        self._data: dict[str, bytes] = {}
        self._modified: dict[str, float] = {}
        self._lock = free_in_child(threading.Lock())

    def prepare(self, keys: Collection[str]) -> None:
        """Refuse a storage that holds other keys."""
        refuse_foreign(self.url, map(first_part, list(self._data)), keys=keys)

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""
        data = self._get(key)
        if len(data) > bytes_max:
            raise CorruptError(f"{key} has {len(data)} bytes; at most {bytes_max} are expected.")
        return data

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a buffer from position `start`, or with the whole key."""
        data = self._get(key)
        end = (start or 0) + len(buffer)
        if end > len(data) or (start is None and end != len(data)):
            raise CorruptError(f"{key} has {len(data)} bytes; {end} are expected.")
        buffer[:] = data[end - len(buffer) : end]
        if seen:
            seen(buffer)

    def put(self, key: str, data: Buffer) -> None:
        """Store bytes under a key."""
        check_key(key)
        copied = bytes(data)
        with self._lock:
            self._modified[key] = time.monotonic()  # first: a child may be forked in between
            self._data[key] = copied

    def copy(self, key: str, to: str) -> None:
        """Store the bytes of one key under another too."""
        self.put(to, self._get(key))

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:
        """Store bytes under a key unless it exists."""
        check_key(key)
        copied = bytes(data)
        with self._lock:
            self._modified.setdefault(key, time.monotonic())
            found = self._data.setdefault(key, copied)
        if found is not copied and seen:
            seen(memoryview(found))
        return found is copied

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys, ignoring missing ones."""
        with self._lock:
            for key in keys:
                self._data.pop(key, None)
                self._modified.pop(key, None)

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every key under a folder."""
        with self._lock:
            listed = [
                Listed(key, len(data), self._modified[key])
                for key, data in self._data.items()
                if key.startswith(prefix)
            ]
        return iter(listed)

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None."""
        data = self._data.get(check_key(key))
        return None if data is None else len(data)

    def now(self) -> float:
        """Return the time by a clock that never goes back."""
        return time.monotonic()

    @property
    def is_far(self) -> bool:
        """Return False."""
        return False

    @property
    def lease_seconds(self) -> float:
        """Return 0: the lock excludes everything else."""
        return 0.0

    def _get(self, key: str) -> bytes:
        try:
            return self._data[check_key(key)]
        except KeyError:
            raise NotFoundError(f"{key} is not in {self.url}.") from None

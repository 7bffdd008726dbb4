"""MemoryStorage: a dict. For tests, and for looking at a repository without a disk."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Confirm, Seen


class MemoryStorage:
    """Bytes by key, in this process."""

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._data: dict[str, bytes] = {}
        self._stored: dict[str, float] = {}
        self._lock = threading.Lock()
        self._held = threading.Lock()

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """All bytes of a key."""
        data = self._find(key)
        if len(data) > bytes_max:
            raise CorruptError(f"{key} has {len(data)} bytes; at most {bytes_max} are expected.")
        return data

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a buffer from position `start`, or with the whole key."""
        data = self._find(key)
        end = (start or 0) + len(buffer)
        if end > len(data) or (start is None and end != len(data)):
            raise CorruptError(f"{key} has {len(data)} bytes; {end} are expected.")
        buffer[:] = data[end - len(buffer) : end]
        if seen:
            seen(buffer)

    def put(self, key: str, data: Buffer, *, confirm: Confirm | None = None) -> None:
        """Store bytes under a key."""
        copied = bytes(data)
        if confirm:
            confirm()
        with self._lock:
            self._data[key] = copied
            self._stored[key] = time.monotonic()

    def flush(self, keys: Iterable[str]) -> None:
        """Nothing outlives the process, so nothing is left to do."""

    def create(self, key: str, data: Buffer) -> bool:
        """Store bytes under a key unless it exists."""
        copied = bytes(data)
        with self._lock:
            self._stored.setdefault(key, time.monotonic())
            return self._data.setdefault(key, copied) is copied

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys."""
        with self._lock:
            for key in keys:
                self._data.pop(key, None)
                self._stored.pop(key, None)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key under a folder, with its size."""
        with self._lock:
            found = [(key, len(data)) for key, data in self._data.items() if key.startswith(prefix)]
        return iter(found)

    def size(self, key: str) -> int | None:
        """The size of a key, or None."""
        data = self._data.get(key)
        return None if data is None else len(data)

    def stale(self, keys: Iterable[str], *, seconds: float) -> set[str]:
        """Those of these keys that have not been put or created for so long."""
        latest = time.monotonic() - seconds
        return {key for key in keys if self._stored.get(key, latest + 1) <= latest}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this storage."""
        with self._held:
            yield

    def sweep(self, *, seconds: float) -> int:  # noqa: ARG002 - nothing is ever half written here
        """Nothing is ever half written here."""
        return 0

    def _find(self, key: str) -> bytes:
        try:
            return self._data[key]
        except KeyError:
            raise NotFoundError(f"{key} is not in {self.url}.") from None

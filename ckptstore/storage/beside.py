"""BesideStorage: memory over another storage, which is only read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckptstore.storage.protocol import Seen, Storage


class BesideStorage(MemoryStorage):
    """Bytes by key in memory; some keys are read from another storage until they are put here.

    Args:
        storage: The other storage, which is never written to.
        keys: The keys that are visible from there. `list` does not show them.
    """

    def __init__(self, storage: Storage, keys: Collection[str]) -> None:
        super().__init__()
        self._storage, self._keys = storage, keys

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None."""
        size = self._storage.size(key) if key in self._keys else None
        return super().size(key) if size is None else size

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""
        if super().size(key) is None and key in self._keys:
            return self._storage.get(key, bytes_max=bytes_max)
        return super().get(key, bytes_max=bytes_max)

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a buffer from position `start`, or with the whole key."""
        if super().size(key) is None and key in self._keys:
            self._storage.read_into(key, buffer, start=start, seen=seen)
        else:
            super().read_into(key, buffer, start=start, seen=seen)

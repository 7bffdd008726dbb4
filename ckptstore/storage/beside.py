"""BesideStorage: a dict that holds only what another storage does not have. For comparing what is not stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckptstore.storage.protocol import Seen, Storage


class BesideStorage(MemoryStorage):
    """Bytes by key, in this process; those of some keys are in another storage and are only read there."""

    def __init__(self, storage: Storage, keys: Collection[str]) -> None:
        super().__init__()
        self._storage, self._keys = storage, keys

    def size(self, key: str) -> int | None:
        """The size of a key, or None."""
        found = self._storage.size(key) if key in self._keys else None
        return super().size(key) if found is None else found

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """All bytes of a key."""
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

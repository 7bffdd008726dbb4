"""DisklessStorage: what memory and object stores have in common, as neither is a disk.

No key is ever half written, nothing has to be flushed, opened or set aside, and no lock or hold
reaches another process.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from ckptstore.forks import free_in_child
from ckptstore.storage.hold import Hold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Seen, Storage, Temporary


class StagedCopy:
    """A copy of bytes that were staged, for storages that write nothing ahead.

    Args:
        storage: Where they are put.
        data: The bytes.
        seen: Called with the copy, if given.
    """

    def __init__(self, storage: Storage, data: Buffer, seen: Seen | None = None) -> None:
        self._storage, self._data = storage, bytes(data)
        if seen:
            seen(memoryview(self._data))

    def put(self, key: str) -> None:
        """Store them under a key."""
        self._storage.put(key, self._data)

    def drop(self) -> None:
        """Do nothing: a copy is freed with the last reference to it."""


class DisklessStorage:
    """The methods of a storage that a disk would need and this one does not.

    Args:
        lock: The lock that `lock` holds; a new one when None.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self._process_lock = lock or free_in_child(threading.Lock())

    def stage(self: Storage, data: Buffer, *, seen: Seen | None = None) -> StagedCopy:
        """Copy the bytes of a later put."""
        return StagedCopy(self, data, seen)

    def batch(self: Storage) -> AbstractContextManager[Storage]:
        """Return this storage: nothing has to be opened."""
        return nullcontext(self)

    def keys(self: Storage, prefix: str) -> Iterator[str]:
        """List the keys alone."""
        return (item.key for item in self.list(prefix))

    def flush(self, keys: Iterable[str]) -> None:
        """Do nothing: no key is more durable later."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock that reaches the threads of this process and no further."""
        with self._process_lock:
            yield

    def hold(self, name: str) -> Hold:  # noqa: ARG002
        """Return a hold that excludes no other process."""
        return Hold()

    def holder(self, name: str) -> str | None:  # noqa: ARG002
        """Return None."""
        return None

    def free_bytes(self) -> int | None:
        """Return None."""
        return None

    def temporaries(self) -> Sequence[Temporary]:
        """List nothing: no key is ever half written."""
        return ()

    def sweep(self) -> int:
        """Do nothing: no key is ever half written."""
        return 0

    def hold_reserve(self) -> None:
        """Do nothing: no room is set aside."""

    def reserve_bytes(self) -> int:
        """Return 0."""
        return 0

    def release_reserve(self) -> bool:
        """Do nothing: nothing was set aside."""
        return False

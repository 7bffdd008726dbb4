"""The contract of a storage: bytes by key, atomic, durable when it says so.

A key is one to three parts of `[A-Za-z0-9._-]` joined by "/", no part beginning with a dot. A storage knows nothing of
what the bytes mean. Whoever implements it should run `ckptstore.testing.storage_suite` against it.

What is required:
1. `put` is atomic: a reader sees the old bytes, the new bytes or nothing, never a part, whatever crashes when.
2. After `flush(keys)` returned, these keys survive a power failure, whoever put them. This is the write barrier:
   a commit calls it before anything refers to what it wrote, or found already there.
3. `create` is atomic and durable by itself: of any number of callers exactly one gets True, and what it wrote is there
   after a power failure.
4. A deleted key may come back after a power failure until `flush` was called with it.
5. A missing key is NotFoundError; whatever else goes wrong is StorageError, and never reads as "not there".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    Confirm = Callable[[], object]
    Seen = Callable[[memoryview], object]


class Storage(Protocol):
    """Bytes by key."""

    @property
    def url(self) -> str:
        """What to pass to `ckptstore.open` to come here again."""
        ...

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """All bytes of a key; CorruptError when there are more than `bytes_max`."""
        ...

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a writable buffer of bytes from position `start`; CorruptError when the key holds too few.

        Without a start the buffer is for the whole key, which must hold exactly that many bytes, else CorruptError.
        seen: called with each part of the buffer once it is filled, in order, while it is still in the core's cache.
        """
        ...

    def put(self, key: str, data: Buffer, *, confirm: Confirm | None = None) -> None:
        """Store bytes under a key, atomically, in place of what was there; durable after `flush`.

        confirm: called once all bytes have been taken and before anybody can see them; what it raises ends the put.
        """
        ...

    def flush(self, keys: Iterable[str]) -> None:
        """Return once these keys are durable, and once those of them that were deleted stay deleted."""
        ...

    def create(self, key: str, data: Buffer) -> bool:
        """Store bytes under a key unless it exists; True, and durable, for exactly one caller."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; one that is not there is no error. Durable after `flush`."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key under a folder ("objects/", or "" for all) with its size in bytes, in no order."""
        ...

    def size(self, key: str) -> int | None:
        """The size of a key in bytes, or None when it is not there."""
        ...

    def stale(self, keys: Iterable[str], *, seconds: float) -> set[str]:
        """Those of these keys that have not been put or created for so long, by the storage's own clock."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Wait until nobody else holds the lock of this storage, and hold it; who dies lets go of it."""
        ...

    def sweep(self, *, seconds: float) -> int:
        """Remove what writers that died left half written, older than this by the storage's own clock: its bytes."""
        ...

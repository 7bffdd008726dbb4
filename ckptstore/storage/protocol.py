"""The contract of a storage: bytes by key, atomic, durable when specified.

A storage knows nothing of what the bytes mean, and a key is no path of any file system: `check_key`
gives the grammar. An implementation should pass `ckptstore.testing.storage_suite`.

What is required (docs/reference/format.md, section 3; ADR 0001):

1. `put` is atomic: a reader sees the old bytes, the new bytes or nothing, never a part, whatever
   crashes when.
2. Once `flush(keys)` has returned, these keys survive a power failure, whichever process put them.
   This is the write barrier: a commit calls it before anything refers to what it wrote or found in
   place.
3. `create` is atomic and durable by itself: of any number of concurrent callers exactly one gets
   True, and its bytes survive a power failure. The bytes must be such that no two callers create
   the same: then a caller whose answer was lost can read the key back to find out which one won.
4. `delete` is durable by itself, and so is a repeated one: once it has returned, no power failure
   brings these keys back, with whatever bytes (ADR 0033).
5. A missing key is a NotFoundError. Every other failure is a StorageError and never reads as
   "not there".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ckptstore.errors import InvalidInputError, StorageError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from ckptstore.storage.hold import Hold

    Seen = Callable[[memoryview], object]

KEY_PARTS_MAX = 3

_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_PART}(/{_PART}){{0,{KEY_PARTS_MAX - 1}}}")


class UnlistedError(StorageError):
    """The keys of a storage cannot be listed, though they can be read."""


class Listed(NamedTuple):
    """One key as a listing shows it.

    Attributes:
        key: The key.
        size: Its size in bytes.
        modified: When it was last put or created, in seconds by the storage's own clock (`now`).
    """

    key: str
    size: int
    modified: float


class Temporary(NamedTuple):
    """A file that is being written, or that a writer left half written.

    Attributes:
        size: Its size in bytes.
        is_left: Whether its writer is known to be dead.
    """

    size: int
    is_left: bool


class Staged(Protocol):
    """Bytes that a storage has taken and that no reader sees yet, on their way to the disk."""

    def put(self, key: str) -> None:
        """Store them under a key, as `Storage.put` does; once at most.

        Args:
            key: Where to store.
        """
        ...

    def drop(self) -> None:
        """Remove them; does nothing once they were put."""
        ...


class Storage(Protocol):
    """Bytes by key."""

    @property
    def url(self) -> str:
        """The URL or path under which `ckptstore.open` finds this storage again."""
        ...

    @property
    def is_far(self) -> bool:
        """True where each call costs a round trip through a network."""
        ...

    def prepare(self, keys: Collection[str]) -> None:
        """Get ready to hold a new repository; does nothing where it is ready already.

        Args:
            keys: The keys that the repository may use, and folders of such keys ("objects/").

        Raises:
            InvalidInputError: Something else is kept here.
        """
        ...

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key.

        Args:
            key: An existing key.
            bytes_max: The largest number of bytes that the caller accepts.


        Raises:
            NotFoundError: There is no such key.
            CorruptError: It has more than `bytes_max` bytes, or is no regular file.
        """
        ...

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a writable buffer of bytes from position `start`.

        Args:
            key: What to read.
            buffer: Filled completely; its content is undefined after an error.
            start: The first byte to read. None reads the whole key, which must then have exactly
                the size of the buffer.
            seen: Called with each part of the buffer once it is filled, in order, while it is
                still in the core's cache.

        Raises:
            NotFoundError: There is no such key.
            CorruptError: It has too few bytes, or without `start` another size.
        """
        ...

    def put(self, key: str, data: Buffer) -> None:
        """Store bytes under a key, atomically replacing what was there; durable after `flush`.

        Args:
            key: Where to store.
            data: Contiguous bytes.
        """
        ...

    def stage(self, data: Buffer, *, seen: Seen | None = None) -> Staged:
        """Take the bytes of a later put, so that others can be taken while they are written.

        Args:
            data: Contiguous bytes; the memory is free when this returns.
            seen: Called with each piece of the bytes. The pieces are copies, so exactly these bytes
                are put even if the memory changes meanwhile.

        Returns:
            What has to be put or dropped, and may hold an open file until then.
        """
        ...

    def copy(self, key: str, to: str) -> None:
        """Store the bytes of one key under another too, if possible without taking room for them.

        Args:
            key: An existing key.
            to: Another key. What it has is replaced; it is durable after `flush`.

        Raises:
            NotFoundError: There is no such key.
        """
        ...

    def batch(self) -> AbstractContextManager[Storage]:
        """Return this storage for the many calls of one writer, whose threads end before it.

        It may keep open until then what would have to be opened for each call.
        """
        ...

    def flush(self, keys: Iterable[str]) -> None:
        """Return once these keys are durable.

        Args:
            keys: Keys that were put, by this or another process.
        """
        ...

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:
        """Store bytes under a key unless it exists.

        Args:
            key: The key to create.
            data: All of its bytes.
            seen: Called with the bytes of another caller, if the storage had to read them to know
                that it was first.

        Returns:
            True, with the bytes durable, for exactly one of any number of callers.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys, ignoring missing ones; they stay removed once it has returned.

        Args:
            keys: The keys to remove.
        """
        ...

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every key under a folder ("objects/", or "" for all), in no particular order.

        Args:
            prefix: A folder with its slash, or "" for all keys.

        Raises:
            UnlistedError: Keys cannot be listed here.
        """
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys alone, as `list` does: on a disk each size and time takes one more call.

        Args:
            prefix: As for `list`.

        Raises:
            UnlistedError: Keys cannot be listed here.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return the size of a key in bytes, or None when there is no such key.

        Args:
            key: Any key.
        """
        ...

    def now(self) -> float:
        """Return the time by the clock that gives `Listed.modified`, in seconds.

        The clock of the program may be wrong by days; ages are only ever taken by this one.
        """
        ...

    @property
    def lease_seconds(self) -> float:
        """The time for which a gc may count on being the only one once an operation says so.

        0 where `lock` excludes every other process, and ends with its holder.
        """
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of this storage, waiting for it; a process that dies releases it.

        With `lease_seconds` it may exclude only the threads of this process.
        """
        ...

    def hold(self, name: str) -> Hold:
        """Hold a name for this process, whose threads and handles share it, until it is released.

        Where nothing can be held, the hold excludes nobody.

        Args:
            name: Any part of a key.

        Raises:
            ConflictError: Another process holds it; the message is only who that is.
        """
        ...

    def holder(self, name: str) -> str | None:
        """Return the process that holds a name, in words; None if there is none.

        Args:
            name: Any part of a key.
        """
        ...

    def free_bytes(self) -> int | None:
        """Return the room that is left for new bytes; None if that is not known."""
        ...

    def temporaries(self) -> Sequence[Temporary]:
        """List what is half written, by living writers and by dead ones."""
        ...

    def sweep(self) -> int:
        """Remove what dead writers left half written.

        Returns:
            The bytes that were freed.
        """
        ...

    def hold_reserve(self) -> None:
        """Set aside the room that a gc needs when the storage is full; never fails.

        Does nothing where that was done, or where no room can be set aside.
        """
        ...

    def reserve_bytes(self) -> int:
        """Return the size of the reserve in bytes."""
        ...

    def release_reserve(self) -> bool:
        """Give up the room that was set aside, so that the next writes may use it.

        Returns:
            True when there was any.
        """
        ...


def check_key(key: str) -> str:
    """Return a legal key.

    A key has one to three parts of `A-Z a-z 0-9 . _ -`, joined by "/", none beginning with a dot.

    Raises:
        InvalidInputError: It is not a key.
    """
    if not _KEY.fullmatch(key):
        raise InvalidInputError(
            f"{shown(key)} is not a key: one to {KEY_PARTS_MAX} parts of letters, digits and ._- "
            "are expected, joined by /, none beginning with a dot."
        )
    return key


def first_part(key: str) -> str:
    """Return the part of a key before its first "/"."""
    return key.partition("/")[0]


def refuse_foreign(url: str, names: Iterable[str], *, keys: Iterable[str]) -> None:
    """Raise InvalidInputError when any of the names that are there is not that of these keys."""
    if foreign := set(names) - set(map(first_part, keys)):
        raise InvalidInputError(
            f"{url} holds other things ({', '.join(sorted(foreign)[:3])}). "
            "Choose an empty or a new place."
        )

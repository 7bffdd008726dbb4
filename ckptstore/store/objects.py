"""ObjectStore: immutable bytes by digest, checked whenever they are read.

The only module that knows under which keys objects are kept. Callers ask for content by digest, so
that later versions may keep objects in packs, compressed or as deltas: a digest always names the
decoded bytes (docs/reference/format.md, sections 2 and 5).
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from blake3 import blake3

from ckptstore.digest import Digest
from ckptstore.documents.marker import CHUNK_BYTES_MAX
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError
from ckptstore.storage.beside import BesideStorage
from ckptstore.store.disk_cache import NO_CACHE, default_cache
from ckptstore.store.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from ckptstore.storage import Listed, Storage
    from ckptstore.storage.protocol import Staged
    from ckptstore.store.disk_cache import DiskCache

    Part = tuple[Digest, slice]  # the digest of a part of a range, and where it is in that

PREFIX = "objects/"
ASIDE = "damaged/"
CHECK_STEP_BYTES, FAR_CHECK_STEP_BYTES = 1 << 20, 8 << 20  # far, of the largest usual chunk
ALONE_THREADS = 2

_KEY = re.compile(r"objects/([0-9a-f]{2})/([0-9a-f]{62})")


class ObjectReader(Protocol):
    """Reads objects, whole or in part, into memory of the caller."""

    @property
    def is_far(self) -> bool:
        """True where each read takes a round trip."""

    def read_into(self, digest: Digest, buffer: memoryview) -> None:
        """Fill a buffer with all bytes of an object of exactly its size, checked."""

    def read_range(
        self, digest: Digest, buffer: memoryview, *, start: int, expected: Digest
    ) -> None:
        """Fill a buffer with a part of an object whose own digest is known, checked."""

    def read_parts(
        self, digest: Digest, buffer: memoryview, *, start: int, parts: Sequence[Part]
    ) -> None:
        """Fill a buffer with a range of an object, of which parts are checked."""


def key_of(digest: Digest) -> str:
    """Return the storage key of an object."""
    return f"{PREFIX}{digest[:2]}/{digest[2:]}"


class ObjectStore:
    """Bytes by digest in a storage.

    hash_threads: how many threads hash an object that is read whole. More than one suits a reader
    of single objects; a reader of several at once keeps the processors busy with one thread each,
    which hashes every piece while it is in the core's cache. meter: counts what passes. cache: has
    what was read before. Only reads of content use it: `size`, `list` and `check` ask the storage.
    """

    FOLDERS: ClassVar = (PREFIX,)
    key = staticmethod(key_of)

    def __init__(
        self,
        storage: Storage,
        *,
        hash_threads: int = 1,
        meter: Meter | None = None,
        cache: DiskCache = NO_CACHE,
    ) -> None:
        self._storage, self._hash_threads = storage, hash_threads
        self.meter = Meter() if meter is None else meter
        self.cache = cache

    @classmethod
    def cached(cls, storage: Storage) -> ObjectStore:
        """Return the objects of a storage, cached on this machine where each read is a trip."""
        return cls(storage, cache=default_cache() if storage.is_far else NO_CACHE)

    def alone(self) -> ObjectStore:
        """Return the same objects for a reader that wants one at a time."""
        return self._with(hash_threads=ALONE_THREADS)

    def counted_by(self, meter: Meter) -> ObjectStore:
        """Return the same objects, counted by another meter."""
        return self._with(meter=meter)

    def _with(self, **changes: Any) -> ObjectStore:
        kept: dict[str, Any] = {
            "hash_threads": self._hash_threads,
            "meter": self.meter,
            "cache": self.cache,
        }
        return ObjectStore(changes.pop("storage", self._storage), **kept | changes)

    def beside(self, digests: Iterable[Digest]) -> Storage:
        """Return a storage in memory that can read these objects, and no others, from here."""
        return BesideStorage(self._storage, frozenset(map(key_of, digests)))

    @property
    def is_far(self) -> bool:
        """True where a look for an object costs a round trip."""
        return self._storage.is_far

    def size(self, digest: Digest) -> int | None:
        """Return the size of an object in bytes, or None when it is not there."""
        return self._storage.size(key_of(digest))

    def has(self, digest: Digest, *, size: int) -> bool:
        """Return True when the object is there with this size; durable only after `flush`."""
        return self.size(digest) == size

    def put(self, digest: Digest, data: Buffer, *, is_shared: bool = False) -> None:
        """Store bytes whose digest the caller has computed; durable after `flush`."""
        self.stage(digest, data, is_shared=is_shared).put()

    def stage(self, digest: Digest, data: Buffer, *, is_shared: bool = False) -> StagedObject:
        """Write bytes ahead of a put. Unless they are shared, their memory is free afterwards.

        is_shared: the memory may be written to meanwhile, as by a training step on another thread.
        The bytes are then hashed again by the put, before any reader can see them, because later
        commits would rely on bytes stored under a wrong digest (ADR 0009).
        """
        staged = self._storage.stage(data)
        shared = data if is_shared else None
        return StagedObject(digest, staged, size=memoryview(data).nbytes, shared=shared)

    def stage_copy(self, data: Buffer) -> StagedObject:
        """Copy, hash and write shared memory piece by piece, so that it is hashed once.

        Unlike `stage`, this writes before the digest is known, so an object that exists already is
        written in vain. The caller drops it.
        """
        hasher = blake3()
        staged = self._storage.stage(data, seen=hasher.update)
        return StagedObject(Digest(hasher.hexdigest()), staged, size=memoryview(data).nbytes)

    @contextmanager
    def batch(self) -> Iterator[ObjectStore]:
        """Yield the same objects for the many calls of one writer, whose threads end before it."""
        with self._storage.batch() as storage:
            yield self._with(storage=storage)

    def flush(self, digests: Iterable[Digest]) -> None:
        """Return once these objects are durable, whichever process put them."""
        self._storage.flush(map(key_of, digests))

    def get(self, digest: Digest, *, bytes_max: int) -> bytes:
        """Return all bytes of an object, checked."""
        data = self.cache.get(digest, bytes_max=bytes_max)
        if data is None:
            key = key_of(digest)
            try:
                data = self._storage.get(key, bytes_max=bytes_max)
            except NotFoundError as error:
                raise missing(key) from error
            if Digest.of(data) != digest:
                raise damaged(key)
            self.cache.put(digest, data)
        self.meter.add("read", len(data))
        return data

    def read_into(self, digest: Digest, buffer: memoryview) -> None:
        """Fill a buffer of exactly the size of an object with its bytes.

        After an error the content of the buffer is undefined and must not be used.
        """
        if not self.cache.read_into(digest, buffer):
            self._fetch_into(digest, buffer)
            self.cache.put(digest, buffer)
        self.meter.add("read", len(buffer))

    def _fetch_into(self, digest: Digest, buffer: memoryview) -> None:
        key = key_of(digest)
        is_alone = self._hash_threads > 1
        hasher = blake3(max_threads=self._hash_threads) if is_alone else blake3()
        try:
            if not is_alone:
                self._storage.read_into(key, buffer, seen=hasher.update)
            else:
                self._storage.read_into(key, buffer)
                hasher.update(buffer)
        except NotFoundError as error:
            raise missing(key) from error
        if hasher.hexdigest() != digest:
            raise damaged(key)

    def read_range(
        self, digest: Digest, buffer: memoryview, *, start: int, expected: Digest
    ) -> None:
        """Fill a buffer with a part of an object whose own digest is known."""
        if not self.cache.read_range(digest, buffer, start=start, expected=expected):
            self._fetch_parts(digest, buffer, start, [(expected, slice(None))])
        self.meter.add("read", len(buffer))

    def read_parts(
        self, digest: Digest, buffer: memoryview, *, start: int, parts: Sequence[Part]
    ) -> None:
        """Fill a buffer with a range of an object; only these parts of it are checked."""
        are_cached = all(
            self.cache.read_range(digest, buffer[part], start=start + part.start, expected=expected)
            for expected, part in parts
        )
        if not are_cached:
            self._fetch_parts(digest, buffer, start, parts)
        self.meter.add("read", len(buffer))

    def _fetch_parts(
        self, digest: Digest, buffer: memoryview, start: int, parts: Sequence[Part]
    ) -> None:
        key = key_of(digest)
        try:
            self._storage.read_into(key, buffer, start=start)
        except NotFoundError as error:
            raise missing(key) from error
        if any(Digest.of(buffer[part]) != expected for expected, part in parts):
            raise damaged(key)
        for expected, part in parts:
            self.cache.put(expected, buffer[part])

    def check(self, digest: Digest, *, size: int) -> None:
        """Read an object of any size in small steps; CorruptError when its digest is another."""
        key = key_of(digest)
        hasher = blake3()
        largest = FAR_CHECK_STEP_BYTES if self.is_far else CHECK_STEP_BYTES
        buffer = memoryview(bytearray(min(size, largest)))
        for start in range(0, size, largest):
            step = buffer[: min(largest, size - start)]
            self._storage.read_into(key, step, start=start)
            hasher.update(step)
            self.meter.add("verified", len(step))
        if hasher.hexdigest() != digest:
            raise CorruptError(f"{key} is damaged: its content does not match its digest.")

    def is_damaged(self, digest: Digest) -> bool:
        """Return True for a file under the name of an object that has other bytes."""
        return self._damaged(digest) is not None

    def copy_aside(self, digest: Digest) -> bool:
        """Copy an object to `damaged/`, durably, if it is damaged, and return whether it is."""
        data = self._damaged(digest)
        if data is None:
            return False
        self._storage.put(f"{ASIDE}{digest}", data)
        self._storage.flush([f"{ASIDE}{digest}"])
        return True

    def drop_aside(self, digests: Iterable[Digest]) -> None:
        """Delete such copies."""
        self._storage.delete(f"{ASIDE}{digest}" for digest in digests)

    def _damaged(self, digest: Digest) -> bytes | None:
        """Return the bytes of a damaged object; None if it is sound, missing or no plain file."""
        try:
            data = self._storage.get(key_of(digest), bytes_max=CHUNK_BYTES_MAX)
        except (NotFoundError, CorruptError):
            return None
        return None if Digest.of(data) == digest else data

    def delete(self, digests: Iterable[Digest]) -> None:
        """Delete objects, ignoring missing ones. Only gc may do this, by its own rules."""
        self._storage.delete(map(self._counted_key, digests))

    def _counted_key(self, digest: Digest) -> str:
        self.meter.add("deleted", 1)
        return key_of(digest)

    def list(self) -> Iterator[tuple[Digest | None, Listed]]:
        """List every object; the digest is None for a key that is no object's."""
        for item in self._storage.list(PREFIX):
            yield digest_of(item.key), item


class StagedObject:
    """An object whose bytes are on their way to the disk, and that no reader sees yet."""

    __slots__ = ("_shared", "_staged", "digest", "size")

    def __init__(
        self, digest: Digest, staged: Staged, *, size: int, shared: Buffer | None = None
    ) -> None:
        self.digest, self.size, self._staged, self._shared = digest, size, staged, shared

    def check(self) -> None:
        """Raise InvalidInputError when shared memory changed since it was hashed.

        Once it is checked, `put` relies on that. It removes an object that fails.
        """
        shared, self._shared = self._shared, None
        if shared is not None and Digest.of(shared) != self.digest:
            self.drop()
            raise InvalidInputError(
                "An array changed while it was being committed. Commit a copy, or wait until "
                "nothing writes to it."
            )

    def put(self) -> None:
        """Make it an object, checked."""
        self.check()
        self._staged.put(key_of(self.digest))

    def drop(self) -> None:
        """Remove it; does nothing once it was put."""
        self._staged.drop()


def digest_of(key: str) -> Digest | None:
    """Return the digest of the object that is kept under a key, or None."""
    match = _KEY.fullmatch(key)
    return Digest(match[1] + match[2]) if match else None


_HEAL = "Run verify, which names the checkpoints affected and the way to heal it."


def missing(key: str) -> CorruptError:
    """Return the error for an object that a document refers to and that is not there."""
    return CorruptError(f"{key} is missing. {_HEAL}")


def damaged(key: str) -> CorruptError:
    """Return the error for an object whose content does not match its digest."""
    return CorruptError(f"{key} is damaged: its content does not match its digest. {_HEAL}")

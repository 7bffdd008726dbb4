"""ObjectStore: immutable bytes by digest, checked on the way out.

The only module that knows how objects lie. Callers ask for content by digest and never build a key, so that later
versions may keep objects in packs, compressed or as deltas: a digest always names the decoded bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from ckptstore.digest import HEX_DIGITS, Digest
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage import Storage

PREFIX = "objects/"
CHECK_STEP_BYTES = 1 << 20
ALONE_THREADS = 2
PUT_THREADS = 12  # most of a thread's time is spent waiting for its fsync


class ObjectStore:
    """Bytes by digest in a storage.

    hash_threads: that hash an object which is read whole. More than one for a reader that wants one object at a time; who reads
    several at once keeps the processors busy with one each, and hashes each piece while it is in the core's cache.
    """

    def __init__(self, storage: Storage, *, hash_threads: int = 1) -> None:
        self._storage, self._hash_threads = storage, hash_threads

    def alone(self) -> ObjectStore:
        """The same objects for a reader that wants one at a time."""
        return ObjectStore(self._storage, hash_threads=ALONE_THREADS)

    def has(self, digest: Digest, *, size: int) -> bool:
        """True when the object is there with this size. It is durable only after `flush`."""
        return self._storage.size(key_of(digest)) == size

    def put(self, digest: Digest, data: Buffer, *, is_shared: bool = False) -> None:
        """Store bytes whose digest the caller has computed; durable after `flush`.

        is_shared: others may write to this memory meanwhile (a training step on another thread). Then the bytes are
        hashed once more when they have been written and before anybody can see them: they must never lie under a
        digest that they do not have, where later commits would rely on it.
        """

        def confirm() -> None:
            if Digest.of(data) != digest:
                raise InvalidInputError(
                    "An array changed while it was being committed. Commit a copy, or wait for the writer."
                )

        self._storage.put(key_of(digest), data, confirm=confirm if is_shared else None)

    def flush(self, digests: Iterable[Digest]) -> None:
        """Return once these objects are durable, whoever put them."""
        self._storage.flush(map(key_of, digests))

    def get(self, digest: Digest, *, bytes_max: int) -> bytes:
        """All bytes of an object, checked."""
        key = key_of(digest)
        try:
            data = self._storage.get(key, bytes_max=bytes_max)
        except NotFoundError as error:
            raise missing(key) from error
        if Digest.of(data) != digest:
            raise damaged(key)
        return data

    def read_into(self, digest: Digest, buffer: memoryview) -> None:
        """Fill a buffer with all bytes of an object of exactly its size.

        On an error the buffer's content is undefined: the caller must not let anyone see it.
        """
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
        key = key_of(digest)
        try:
            self._storage.read_into(key, buffer, start=start)
        except NotFoundError as error:
            raise missing(key) from error
        if Digest.of(buffer) != expected:
            raise damaged(key)

    def check(self, digest: Digest, *, size: int) -> None:
        """Read an object of any size in small steps, and raise CorruptError when its bytes do not have its digest."""
        key = key_of(digest)
        hasher = blake3()
        buffer = memoryview(bytearray(min(size, CHECK_STEP_BYTES)))
        for start in range(0, size, CHECK_STEP_BYTES):
            step = buffer[: min(CHECK_STEP_BYTES, size - start)]
            self._storage.read_into(key, step, start=start)
            hasher.update(step)
        if hasher.hexdigest() != digest:
            raise CorruptError(f"{key} is damaged: its bytes do not have its digest.")

    def delete(self, digests: Iterable[Digest]) -> None:
        """Delete objects; one that is not there is no error. Only gc may: see there when."""
        self._storage.delete(map(key_of, digests))

    def list(self) -> Iterator[tuple[Digest | None, str, int]]:
        """Every object with its key and size; the digest is None for a file whose name is no object's."""
        for key, size in self._storage.list(PREFIX):
            yield digest_of(key), key, size


def key_of(digest: Digest) -> str:
    """The storage key of an object."""
    return f"{PREFIX}{digest[:2]}/{digest[2:]}"


def digest_of(key: str) -> Digest | None:
    """The object that a storage key names, or None."""
    text = key.removeprefix(PREFIX).replace("/", "")
    if (
        len(text) != HEX_DIGITS
        or set(text) - set("0123456789abcdef")
        or key_of(Digest(text)) != key
    ):
        return None
    return Digest(text)


def missing(key: str) -> CorruptError:
    """The error for an object that a document refers to and that is not there."""
    return CorruptError(f"{key} is missing. Run verify to see which checkpoints suffer.")


def damaged(key: str) -> CorruptError:
    """The error for an object whose bytes do not have its digest."""
    return CorruptError(
        f"{key} is damaged: its bytes do not have its digest. Run verify to see which checkpoints suffer."
    )

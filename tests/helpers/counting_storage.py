"""A storage in memory that counts reads and writes, and a repository in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.repository import Repository
from ckptstore.storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore.storage import Listed

CHUNK_BYTES = 64 << 10


class CountingStorage(MemoryStorage):
    """A storage in memory that counts.

    reads: the reads of each key. read_bytes: of arrays. written: the bytes of each key. calls: of
    each method. listed: the keys that listings of each prefix returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.reads: Counter[str] = Counter()
        self.read_bytes = 0
        self.written: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.listed: Counter[str] = Counter()

    def get(self, key: str, *, bytes_max: int) -> bytes:
        self.reads[key] += 1
        self.calls["get"] += 1
        return super().get(key, bytes_max=bytes_max)

    def read_into(self, key: str, buffer: memoryview, **options: Any) -> None:
        self.reads[key] += 1
        self.calls["read_into"] += 1
        self.read_bytes += len(buffer)
        super().read_into(key, buffer, **options)

    def put(self, key: str, data: Any, **options: Any) -> None:
        self.written[key] = memoryview(data).nbytes
        self.calls["put"] += 1
        super().put(key, data, **options)

    def create(self, key: str, data: Any, **options: Any) -> bool:
        self.written[key] = memoryview(data).nbytes
        self.calls["create"] += 1
        return super().create(key, data, **options)

    def size(self, key: str) -> int | None:
        self.calls["size"] += 1
        return super().size(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        self.calls["list"] += 1
        for item in super().list(prefix):
            self.listed[prefix] += 1
            yield item

    def flush(self, keys: Iterable[str]) -> None:
        self.calls["flush"] += 1
        super().flush(keys)

    def delete(self, keys: Iterable[str]) -> None:
        listed = tuple(keys)
        self.calls["delete"] += len(listed)
        super().delete(listed)

    def touched(self) -> set[str]:
        """The keys that were read or written."""
        return {*self.reads, *self.written}


def repository(storage: CountingStorage) -> Repository:
    """A handle on the repository in a storage, which is created if it is missing."""
    marker = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)
    storage.create(MARKER_KEY, marker.encode())
    return Repository(storage, marker)


def array_objects(checkpoint: Any) -> set[str]:
    """The keys of the chunks and bundles of a checkpoint."""
    pages = checkpoint._catalog.pages(checkpoint._manifest)
    digests = {digest for page in pages for digest, _ in page.digests()}
    return {f"objects/{digest[:2]}/{digest[2:]}" for digest in digests}

"""A storage in memory that counts reads and writes, and a repository in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.repository import Repository
from ckptstore.storage import MemoryStorage

CHUNK_BYTES = 64 << 10


class CountingStorage(MemoryStorage):
    """reads: the reads of each key. read_bytes: of arrays. written: the bytes of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.reads: Counter[str] = Counter()
        self.read_bytes = 0
        self.written: dict[str, int] = {}

    def get(self, key: str, *, bytes_max: int) -> bytes:
        self.reads[key] += 1
        return super().get(key, bytes_max=bytes_max)

    def read_into(self, key: str, buffer: memoryview, **options: Any) -> None:
        self.reads[key] += 1
        self.read_bytes += len(buffer)
        super().read_into(key, buffer, **options)

    def put(self, key: str, data: Any, **options: Any) -> None:
        self.written[key] = memoryview(data).nbytes
        super().put(key, data, **options)

    def create(self, key: str, data: Any) -> bool:
        self.written[key] = memoryview(data).nbytes
        return super().create(key, data)

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

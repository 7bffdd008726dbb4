"""Staged: the contents of a head, with what was set and deleted since, before anybody else sees them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import TYPE_CHECKING

from ckptstore.arrays.file import OpenFile
from ckptstore.digest import Digest
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.documents.zarr_page import Value
from ckptstore.errors import ConflictError, InvalidInputError
from ckptstore.zarr.contents import CachedObjects, Contents, Held, Stored, contents_of
from ckptstore.zarr.layout import array_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ckptstore.documents.manifest import Manifest
    from ckptstore.store.catalog import Catalog
    from ckptstore.zarr.contents import Content

HELD_BYTES_MAX = 64 << 20  # small values that wait for the commit; more become objects at once


class Staged:
    """What a session's store holds: the contents of the head, with what was set and deleted since."""

    def __init__(
        self,
        head: Digest | None,
        manifest: Manifest | None,
        catalog: Catalog,
        segment_bytes: int,
    ) -> None:
        self.head, self.manifest = head, manifest
        self.catalog, self.segment_bytes = catalog, segment_bytes
        self.objects = CachedObjects(catalog.objects)
        self.written: set[str] = set()  # the head's arrays of whose keys one was set or deleted
        self.relied: dict[
            Digest, int
        ] = {}  # objects that were put, or found there, with their sizes
        self.new_bytes = 0
        self._is_published = False
        self._held_bytes = 0
        self._contents: Contents | None = None if manifest else {}
        self._sorted: list[str] | None = None
        self._lock = RLock()

    @property
    def contents(self) -> Contents:
        """What there is now, by key. It is read when it is wanted: most sessions end with their first commit."""
        with self._lock:
            if self._contents is None:
                assert self.manifest
                with self.reading():
                    self._contents = contents_of(self.manifest, self.catalog)
            return self._contents

    def reading(self) -> AbstractContextManager[None]:
        """Say that the head expired when it did so while it was read."""
        return nullcontext() if self.head is None else self.catalog.reading(self.head)

    @contextmanager
    def published(self) -> Iterator[None]:
        """Refuse all changes while a commit stores the contents; afterwards too, unless it fails.

        A value that another thread sets meanwhile would be in no checkpoint, and nobody would know.
        """
        with self._lock:
            self._refuse_published()
            self._is_published = True
        try:
            yield
        except BaseException:
            self._is_published = False
            raise

    def keys(self) -> list[str]:
        """Every key, sorted."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self.contents)
            return self._sorted

    def hold(self, key: str, data: bytes) -> bool:
        """Keep a small value for the commit; False when too many are kept already."""
        with self._lock:
            if self._held_bytes + len(data) > HELD_BYTES_MAX:
                return False
            self._replace(key, Held(data))
            return True

    def put(self, key: str, data: memoryview) -> None:
        """Store a value as objects."""
        value = self.stored(data)
        with self._lock:
            self._replace(key, Stored(value, self.segment_bytes))

    def put_file(self, key: str, path: Path) -> None:
        """Store what a regular file holds, a segment at a time. InvalidInputError when it is none, or changes meanwhile."""
        file = OpenFile(path, follow=False)
        size, step = file.nbytes, self.segment_bytes
        if size < SMALL_BYTES and self.hold(key, file.read(0, size)):
            return
        digests = tuple(
            self._put(memoryview(file.read(start, min(step, size - start))))
            for start in range(0, size, step)
        )
        with self._lock:
            self._replace(key, Stored(Value(size, digests), step))

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        with self._lock:
            if key in self.contents:
                self._replace(key, None)

    def stored(self, data: memoryview) -> Value:
        """Have the segments of a value in the repository, and rely on them. Not durable yet."""
        parts = [
            data[start : start + self.segment_bytes]
            for start in range(0, len(data), self.segment_bytes)
        ]
        return Value(len(data), tuple(self._put(part) for part in parts))

    def check_there(self) -> None:
        """Raise ConflictError when a gc has deleted what was put, or given up the head."""
        if self.head is not None and not self.catalog.is_live(self.head):
            raise ConflictError(
                f"Checkpoint {self.head.short}, from which this session began, expired meanwhile. Write the changes again in a "
                "new session."
            )
        for digest, size in self.relied.items():
            if not self.catalog.objects.has(digest, size=size):
                raise ConflictError(
                    "A gc took what this session has written for garbage, because it was open for too long. Write it again "
                    "in a new session, and commit sooner."
                )

    def document(self, data: bytes) -> Digest:
        """Have a document in the repository."""
        return self._put(memoryview(data))

    def _put(self, data: memoryview) -> Digest:
        digest = Digest.of(data)
        with self._lock:
            if digest in self.relied:
                return digest
        if not self.catalog.objects.has(digest, size=len(data)):
            self.catalog.objects.put(digest, data, is_shared=True)
            with self._lock:
                self.new_bytes += len(data)
        with self._lock:
            self.relied[digest] = len(data)
        return digest

    def _refuse_published(self) -> None:
        if self._is_published:
            raise InvalidInputError(
                "The session is being committed. Wait for that to end, then write on, or commit again."
            )

    def _replace(self, key: str, content: Content | None) -> None:
        self._refuse_published()
        before = self.contents.get(key)
        if before is not None and (array := array_of(before)) is not None:
            self.written.add(array)
        if isinstance(before, Held):
            self._held_bytes -= before.size
        if content is None:
            del self.contents[key]
        else:
            self.contents[key] = content
        if isinstance(content, Held):
            self._held_bytes += content.size
        if (before is None) != (content is None):
            self._sorted = None

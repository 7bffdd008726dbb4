"""StagedContents: the contents of a head plus the uncommitted changes of a session.

Large values become objects at once, small ones wait in memory for the commit. Nothing refers to
either before `publish.write`. See docs/adr/0016.
"""

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

HELD_BYTES_MAX = 64 << 20  # small values that wait for the commit; further ones become objects


class StagedContents:
    """The keys and values of a session's store. Safe to use from several threads.

    Attributes:
        objects: Where contents are read from.
        written: The head's arrays, by path in the state, of which a key was set or deleted.
        relied: The objects that this session has put or found in the repository, with their sizes.
        new_bytes: Bytes of the objects that this session has put.
    """

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
        self.written: set[str] = set()
        self.relied: dict[Digest, int] = {}
        self.new_bytes = 0
        self._is_published = False
        self._held_bytes = 0
        self._contents: Contents | None = None if manifest else {}
        self._sorted: list[str] | None = None
        self._lock = RLock()

    @property
    def contents(self) -> Contents:
        """Every value by key.

        Read on first use: most sessions end with their first commit, so those that follow one
        would be read in vain.
        """
        with self._lock:
            if self._contents is None:
                assert self.manifest
                with self.reading():
                    self._contents = contents_of(self.manifest, self.catalog)
            return self._contents

    def reading(self) -> AbstractContextManager[None]:
        """Turn errors of reading the head into ExpiredError where it expired meanwhile."""
        return nullcontext() if self.head is None else self.catalog.reading(self.head)

    @contextmanager
    def published(self) -> Iterator[None]:
        """Refuse all changes while a commit stores the contents, and afterwards unless it fails.

        A value that another thread sets meanwhile would silently be in no checkpoint.
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
        """Keep a small value for the commit. False when HELD_BYTES_MAX is reached."""
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
        """Store the contents of a regular file, a segment at a time.

        Raises:
            InvalidInputError: It is not a regular file, or it changes while it is read.
        """
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
        """Remove a key. A missing one is not an error."""
        with self._lock:
            if key in self.contents:
                self._replace(key, None)

    def stored(self, data: memoryview) -> Value:
        """Put the segments of a value that the repository lacks. Not durable before a flush."""
        parts = [
            data[start : start + self.segment_bytes]
            for start in range(0, len(data), self.segment_bytes)
        ]
        return Value(len(data), tuple(self._put(part) for part in parts))

    def check_there(self) -> None:
        """Raise ConflictError when a gc has deleted an object of this session or expired its head.

        A session no longer has the bytes it put, so unlike other writers it cannot put them again.
        """
        if self.head is not None and not self.catalog.is_live(self.head):
            raise ConflictError(
                f"Checkpoint {self.head.short}, on which this session is based, has expired since. "
                "Write the changes again in a new session."
            )
        for digest, size in self.relied.items():
            if not self.catalog.objects.has(digest, size=size):
                raise ConflictError(
                    "The session was open for so long that gc deleted objects it had written. "
                    "Write the changes again in a new session, and commit sooner."
                )

    def document(self, data: bytes) -> Digest:
        """Put a document unless the repository has it."""
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
                "The session is being committed. Wait until that has finished before writing or "
                "committing again."
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

"""StagedContents: the contents of a head plus the uncommitted changes of a session.

Large values become objects at once, small ones wait in memory for the commit. Nothing refers to
either before `publish.write`. See docs/adr/0016.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.arrays.file import OpenFile
from ckptstore.digest import Digest
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.documents.zarr_page import Value
from ckptstore.errors import ConflictError, InvalidInputError
from ckptstore.zarr.contents import Held, Stored, View
from ckptstore.zarr.layout import array_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckptstore.documents.manifest import Manifest
    from ckptstore.store.catalog import Catalog
    from ckptstore.zarr.contents import Content

HELD_BYTES_MAX = 64 << 20  # small values that wait for the commit; further ones become objects


class StagedContents(View):
    """The keys and values of a session's store. Safe to use from several threads.

    Attributes:
        written: The head's arrays, by path in the state, of which a key was set or deleted.
        relied: The objects that this session has put or found in the repository, with their sizes.
        new_bytes: Bytes of the objects that this session has put.
    """

    def __init__(
        self,
        id: Digest | None,
        manifest: Manifest | None,
        catalog: Catalog,
        segment_bytes: int,
    ) -> None:
        super().__init__(id, manifest, catalog)
        self.segment_bytes = segment_bytes
        self.written: set[str] = set()
        self.relied: dict[Digest, int] = {}
        self.new_bytes = 0
        self._is_published = False
        self._held_bytes = 0

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
            self.put_object(file.read(start, min(step, size - start)))
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
        """Put the segments of a value that the repository lacks."""
        parts = [
            data[start : start + self.segment_bytes]
            for start in range(0, len(data), self.segment_bytes)
        ]
        return Value(len(data), tuple(self.put_object(part) for part in parts))

    def check_there(self) -> None:
        """Raise ConflictError when a gc has deleted an object of this session or expired its head.

        A session no longer has the bytes it put, so unlike other writers it cannot put them again.
        """
        if self.id is not None and not self.catalog.is_live(self.id):
            raise ConflictError(
                f"Checkpoint {self.id.short}, on which this session is based, has expired since. "
                "Write the changes again in a new session."
            )
        for digest, size in self.relied.items():
            if not self.catalog.objects.has(digest, size=size):
                raise ConflictError(
                    "The session was open for so long that gc deleted objects it had written. "
                    "Write the changes again in a new session, and commit sooner."
                )

    def put_object(self, data: bytes | memoryview) -> Digest:
        """Put an object unless the repository has it. Not durable before a flush."""
        data = memoryview(data)
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

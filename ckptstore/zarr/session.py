"""Session: a writable Zarr store staged over the head of a branch, and the commit of what was written.

What is set goes into the repository as objects, small values with the commit, and nothing refers to them before. A session
that is given up leaves only such objects behind, for gc. Arrays of the head that nobody touched stay as they are, page for
page; one that was written to through Zarr becomes a Zarr array, whose untouched chunks are the same objects.
"""

from __future__ import annotations

import asyncio
import secrets
from threading import RLock
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

from zarr.core.buffer import Buffer

from ckptstore.digest import Digest
from ckptstore.errors import ConflictError, InvalidInputError
from ckptstore.format.node_page import Value, check_key
from ckptstore.format.page import SMALL_BYTES
from ckptstore.zarr.contents import CachedObjects, Contents, Held, Stored, contents_of
from ckptstore.zarr.layout import array_of
from ckptstore.zarr.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from ckptstore.catalog import Catalog
    from ckptstore.format.manifest import Manifest
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
        self.contents: Contents = contents_of(manifest, catalog) if manifest else {}
        self.objects = CachedObjects(catalog.objects)
        self.written: set[str] = set()  # the head's arrays of whose keys one was set or deleted
        self.relied: dict[
            Digest, int
        ] = {}  # objects that were put, or found there, with their sizes
        self.new_bytes = 0
        self._held_bytes = 0
        self._sorted: list[str] | None = None
        self._lock = RLock()

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
        """Raise ConflictError when a gc has deleted what was put."""
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

    def _replace(self, key: str, content: Content | None) -> None:
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


class Session:
    """A change to a branch that is written through Zarr. Made by `Repository.session`, and used with `with`.

    store: a writable store for zarr-python: `zarr.open_group(session.store)`. Nobody else sees what it holds before
    `commit`. A session must not be open for longer than an hour beside a gc, which may take what it has put for garbage;
    commit tells when that has happened.
    """

    def __init__(
        self,
        branch: str,
        begin: Callable[[], Staged],
        publish: Callable[..., Any],
    ) -> None:
        self.branch = branch
        self.token = secrets.token_hex(16)
        self._begin, self._publish = begin, publish
        self._staged: Staged | None = begin()
        _sessions[self.token] = self

    def __repr__(self) -> str:
        return f"Session({self.branch!r}{'' if self._staged else ', closed'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give up what was not committed."""
        self.close()

    @property
    def store(self) -> SessionStore:
        """The writable store."""
        self.staged()
        return SessionStore(self)

    def staged(self) -> Staged:
        """What is staged; InvalidInputError when the session is closed."""
        if self._staged is None:
            raise InvalidInputError(
                "The session is closed. Open another: with repo.session(branch) as s: …"
            )
        return self._staged

    def commit(
        self,
        *,
        step: int | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make what the store holds the new head of the branch, durable when this returns: the Checkpoint.

        ConflictError when the branch moved since the session began. The session goes on over the new head.
        """
        made = self._publish(self.staged(), step=step, metrics=metrics, message=message, meta=meta)
        self._staged = self._begin()
        return made

    def close(self) -> None:
        """Give up what was not committed; the store cannot be used any more."""
        self._staged = None


_sessions: WeakValueDictionary[str, Session] = WeakValueDictionary()


class SessionStore(ContentStore):
    """The writable Zarr store of a session. It pickles within the process whose session it is."""

    supports_deletes: bool = True
    supports_writes: bool = True

    def __init__(self, session: Session, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._session = session

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, to be written to or not."""
        return type(self)(self._session, read_only=read_only)

    def _contents(self) -> Contents:
        return self._session.staged().contents

    def _keys(self) -> list[str]:
        return self._session.staged().keys()

    def _objects(self) -> CachedObjects:
        return self._session.staged().objects

    async def set(self, key: str, value: Buffer) -> None:
        """Stage a value."""
        if not self._is_open:
            await self._open()
        if not self._hold(key, value):
            await asyncio.to_thread(self._put, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Stage a value."""
        if not self._hold(key, value):
            self._put(key, value)

    def _hold(self, key: str, value: Buffer) -> bool:
        """Keep a value for the commit, after all checks; False for one that is to be put at once."""
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"The value of {key!r} is a {type(value).__name__}, not a zarr Buffer.")
        check_key(key)
        is_small = len(value) < SMALL_BYTES
        return is_small and self._session.staged().hold(key, value.to_bytes())

    def _put(self, key: str, value: Buffer) -> None:
        self._session.staged().put(key, memoryview(value.as_buffer_like()).cast("B"))

    async def delete(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        self.delete_sync(key)

    def delete_sync(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        self._check_writable()
        self._session.staged().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove every key under a prefix."""
        self._check_writable()
        staged = self._session.staged()
        for key in list(self._under(prefix)):
            staged.delete(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionStore) and self._session is other._session

    def __hash__(self) -> int:
        return hash(self._session.token)

    def __repr__(self) -> str:
        return f"SessionStore({self._session.branch!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"token": self._session.token, "read_only": self.read_only, "is_open": self._is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        session = _sessions.get(state["token"])
        if session is None:
            raise InvalidInputError(
                "A session's store works only in the process that opened the session."
            )
        self.__init__(session, read_only=state["read_only"])  # type: ignore[misc]
        self._is_open = state["is_open"]

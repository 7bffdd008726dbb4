"""Session: a writable Zarr store staged over the head of a branch, and the commit of what was written.

What is set goes into the repository as objects, small values with the commit, and nothing refers to them before. A session
that is given up leaves only such objects behind, for gc. Arrays of the head that nobody touched stay as they are, page for
page; one that was written to through Zarr becomes a Zarr array, whose untouched chunks are the same objects.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

from zarr.core.buffer import Buffer

from ckptstore.documents.page import SMALL_BYTES
from ckptstore.documents.zarr_page import check_key
from ckptstore.errors import InvalidInputError
from ckptstore.zarr.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import SupportsIndex

    from ckptstore.digest import Digest
    from ckptstore.zarr.changes import Staged
    from ckptstore.zarr.contents import CachedObjects, Contents


ONE_PROCESS = (
    "A session's store works only in the process that opened the session. Write from threads of that process, or open a "
    "session in each."
)


class Session:
    """A change to a branch that is written through Zarr. Made by `Repository.session`, and used with `with`.

    store: a writable store for zarr-python: `zarr.open_group(session.store)`. Nobody else sees what it holds before
    `commit`. A session must not be open for longer than an hour beside a gc, which may take what it has put for garbage;
    commit tells when that has happened.
    """

    def __init__(
        self,
        branch: str,
        begin: Callable[[Digest | None], Staged],
        publish: Callable[..., Any],
        *,
        head: Digest | None,
    ) -> None:
        self.branch = branch
        self.token = secrets.token_hex(16)
        self._process = os.getpid()
        self._begin, self._publish = begin, publish
        self._staged: Staged | None = begin(head)
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
        """What is staged; InvalidInputError when the session is closed, or another process's."""
        if os.getpid() != self._process:  # a forked one: nobody would ever see what it sets
            raise InvalidInputError(ONE_PROCESS)
        if self._staged is None:
            raise InvalidInputError(
                "The session is closed. Open another: with repo.session(branch) as s: …"
            )
        return self._staged

    def commit(
        self,
        *,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        retry: bool = False,
    ) -> Any:
        """Make what the store holds the new head of the branch, durable when this returns: the Checkpoint.

        ConflictError when the branch moved since the session began; with `retry`, the new head becomes the parent, and what
        others changed there is not in this checkpoint. The session goes on over what it committed. What other threads write while
        this runs is refused.
        """
        staged = self.staged()
        with staged.published():
            made = self._publish(
                staged, step=step, metrics=metrics, message=message, meta=meta, retry=retry
            )
        self._staged = self._begin(made.id)
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

    def _reading(self) -> AbstractContextManager[None]:
        return self._session.staged().reading()

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
            raise InvalidInputError(ONE_PROCESS)
        self.__init__(session, read_only=state["read_only"])  # type: ignore[misc]
        self._is_open = state["is_open"]

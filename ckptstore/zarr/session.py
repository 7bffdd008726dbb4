"""Session: a writable Zarr store staged over the head of a branch, and the commit of its changes.

Large values become objects in the repository as they are set, small ones with the commit. Nothing
refers to them before, so an abandoned session leaves only objects for gc to delete. Untouched
arrays of the head keep their pages. An array of a state that is written to becomes a Zarr array,
whose untouched chunks are the same objects. See docs/adr/0016.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

from zarr.core.buffer import Buffer

from ckptstore.documents.facts import Facts
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.documents.zarr_page import check_key
from ckptstore.errors import InvalidInputError
from ckptstore.zarr.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import SupportsIndex

    from ckptstore.digest import Digest
    from ckptstore.zarr.staged_contents import StagedContents


ONE_PROCESS = (
    "A session's store works only in the process that opened the session. Write from threads of "
    "that process, or open a session in each process."
)


class Session:
    """Changes to a branch that are written through Zarr; a context manager.

    `Repository.session` makes it. Leaving the `with` block drops what was not committed. Threads of
    one process may share a session; other processes may not use it. gc deletes unreferenced objects
    that are older than its grace time (an hour by default), so a session that stays open longer
    beside a gc may lose its objects; `commit` then raises ConflictError. See docs/adr/0016.

    Attributes:
        branch: The branch that `commit` moves.

    Example:
        >>> import ckptstore, zarr
        >>> repo = ckptstore.init("memory://session-example")
        >>> with repo.session("main") as session:
        ...     group = zarr.create_group(session.store)
        ...     array = group.create_array("weight", shape=(4,), dtype="float32")
        ...     array[:] = 1
        ...     checkpoint = session.commit(step=100)
        >>> repo.checkout("main")["weight"]
        array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        branch: str,
        begin: Callable[[Digest | None], StagedContents],
        publish: Callable[..., Any],
        *,
        head: Digest | None,
    ) -> None:
        self.branch = branch
        self.token = secrets.token_hex(16)
        self._process = os.getpid()
        self._begin, self._publish = begin, publish
        self._staged: StagedContents | None = begin(head)
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
        """Drop what was not committed."""
        self.close()

    @property
    def store(self) -> SessionStore:
        """The writable store for zarr-python, as in `zarr.open_group(session.store)`.

        Raises:
            InvalidInputError: The session is closed, or belongs to another process.
        """
        self.staged()
        return SessionStore(self)

    def staged(self) -> StagedContents:
        """The staged contents; InvalidInputError when closed, or in another process."""
        if os.getpid() != self._process:  # what a forked child sets could never be committed
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
        """Commit the contents of the store as the new head of the branch.

        The checkpoint is durable when this returns, and the session continues from it. Writes by
        other threads are refused meanwhile.

        Args:
            step: The training step, 0 or more.
            metrics: Numbers by name.
            message: Description of the checkpoint.
            meta: Further JSON values by name.
            retry: When the branch has moved since the session began, take its new head as the
                parent instead of raising. The new checkpoint does not contain the changes made
                there.

        Returns:
            The Checkpoint.

        Raises:
            ConflictError: The branch has moved and `retry` is false, the head has expired, or gc
                has deleted objects of the session.
            InvalidInputError: An argument is invalid, the session is closed or already being
                committed, or it belongs to another process.
            StorageError: The storage failed.
        """
        staged = self.staged()
        facts = Facts.of(step=step, metrics=metrics, message=message, meta=meta)
        with staged.published():
            checkpoint = self._publish(staged, facts, retry=retry)
        self._staged = self._begin(checkpoint.id)
        return checkpoint

    def close(self) -> None:
        """Drop what was not committed. The store cannot be used afterwards."""
        self._staged = None


_sessions: WeakValueDictionary[str, Session] = WeakValueDictionary()


class SessionStore(ContentStore):
    """The writable Zarr store of a session, made by `Session.store`.

    The methods are those of `zarr.abc.store.Store`. It can be pickled and unpickled within the
    process of its session.
    """

    supports_deletes: bool = True
    supports_writes: bool = True

    def __init__(self, session: Session, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._session = session

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, read-only or writable."""
        return type(self)(self._session, read_only=read_only)

    def _view(self) -> StagedContents:
        return self._session.staged()

    async def set(self, key: str, value: Buffer) -> None:
        """Set the value of a key. Keys follow the rules of format.md, section 10.5."""
        if not self._is_open:
            await self._open()
        if not self._hold(key, value):
            await asyncio.to_thread(self._put, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Set the value of a key. Keys follow the rules of format.md, section 10.5."""
        if not self._hold(key, value):
            self._put(key, value)

    def _hold(self, key: str, value: Buffer) -> bool:
        """Check a value and keep a small one for the commit; False for one to be put at once."""
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"The value of {key!r} is a {type(value).__name__}, not a zarr Buffer.")
        check_key(key)
        is_small = len(value) < SMALL_BYTES
        return is_small and self._session.staged().hold(key, value.to_bytes())

    def _put(self, key: str, value: Buffer) -> None:
        self._session.staged().put(key, memoryview(value.as_buffer_like()).cast("B"))

    async def delete(self, key: str) -> None:
        """Remove a key. A missing one is not an error."""
        self.delete_sync(key)

    def delete_sync(self, key: str) -> None:
        """Remove a key. A missing one is not an error."""
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

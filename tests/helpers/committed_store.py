"""A Zarr store that commits every change and reads from the newest checkpoint.

It lets the test suite of zarr-python, which writes and reads one store, test `CheckpointStore`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import Store

import ckptstore
from ckptstore.zarr import CheckpointStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

BRANCH = "main"


class CommittedStore(Store):
    """The head of a repository's branch."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.url = url
        repo = ckptstore.open(url)
        if BRANCH not in repo.branches():
            with repo.session(BRANCH) as session:
                session.commit()

    def newest(self) -> CheckpointStore:
        """What is tested."""
        return CheckpointStore(self.url, BRANCH)

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.url, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommittedStore) and self.url == other.url

    __hash__ = None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self.newest().get(key, prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return await self.newest().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        return await self.newest().exists(key)

    async def getsize(self, key: str) -> int:
        return await self.newest().getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        return await self.newest().getsize_prefix(prefix)

    async def is_empty(self, prefix: str) -> bool:
        return await self.newest().is_empty(prefix)

    def list(self) -> AsyncIterator[str]:
        return self.newest().list()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self.newest().list_prefix(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self.newest().list_dir(prefix)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return self.newest().get_sync(key, prototype=prototype, byte_range=byte_range)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        with ckptstore.open(self.url).session(BRANCH) as session:
            session.store.set_sync(key, value)
            session.commit()

    def delete_sync(self, key: str) -> None:
        self._check_writable()
        with ckptstore.open(self.url).session(BRANCH) as session:
            session.store.delete_sync(key)
            session.commit()

    async def set(self, key: str, value: Buffer) -> None:
        self.set_sync(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        self._check_writable()
        with ckptstore.open(self.url).session(BRANCH) as session:
            for key, value in values:
                await session.store.set(key, value)
            session.commit()

    async def delete(self, key: str) -> None:
        self.delete_sync(key)

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        with ckptstore.open(self.url).session(BRANCH) as session:
            await session.store.delete_dir(prefix)
            session.commit()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_read_only": self.read_only, "_is_open": self._is_open}

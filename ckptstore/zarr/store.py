"""CheckpointStore: a checkpoint as a read-only store of zarr-python."""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from bisect import bisect_left
from datetime import UTC, datetime
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from ckptstore.documents.marker import MARKER_KEY
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, NotFoundError
from ckptstore.revisions import resolve
from ckptstore.state.tree import ROOT
from ckptstore.storage import open_storage
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog
from ckptstore.zarr import dtypes
from ckptstore.zarr.contents import (
    METADATA,
    CachedObjects,
    Contents,
    completed_root,
    contents_of,
    document_bytes,
    join,
    parsed,
    refuse_pickle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from contextlib import AbstractContextManager

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.zarr.contents import Content


assert dtypes.ALL, "importing them is what makes zarr-python know them"


class ContentStore(Store):
    """What both stores have in common: reading and listing keys."""

    supports_deletes: bool = False
    supports_listing: bool = True
    supports_writes: bool = False

    def __init__(self, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)

    @abstractmethod
    def _contents(self) -> Mapping[str, Content]:
        """What there is now, by key."""

    @abstractmethod
    def _keys(self) -> list[str]:
        """Every key, sorted."""

    @abstractmethod
    def _objects(self) -> CachedObjects:
        """Where contents are read from."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[None]:
        """Goes around every read of contents, to tell what has been deleted from what is damaged."""

    def _content(self, key: str) -> Content | None:
        """What a key holds."""
        return self._contents().get(key)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value of a key, or a part of it; None when there is none. CorruptError when it was damaged."""
        content = self._content(key)
        if content is None:
            return None
        start, stop = span(byte_range, content.size)
        return self._read(key, content, start, stop, prototype)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value of a key, or a part of it; None when there is none. CorruptError when it was damaged."""
        if not self._is_open:
            await self._open()
        content = self._content(key)
        if content is None:
            return None
        start, stop = span(byte_range, content.size)
        if stop - start < SMALL_BYTES:
            return self._read(key, content, start, stop, prototype)
        return await asyncio.to_thread(self._read, key, content, start, stop, prototype)

    def _read(
        self,
        key: str,
        content: Content,
        start: int,
        stop: int,
        prototype: BufferPrototype | None,
    ) -> Buffer:
        with self._reading():
            refuse_pickle(key, content, self._objects())
            data = content.read(self._objects(), start, stop)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Parts of several values."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """True when a key has a value."""
        return self._content(key) is not None

    async def getsize(self, key: str) -> int:
        """Bytes of a value; FileNotFoundError when there is none."""
        content = self._content(key)
        if content is None:
            raise FileNotFoundError(key)
        return content.size

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values under a prefix."""
        contents = self._contents()
        return sum(contents[key].size for key in self._under(prefix))

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins so."""
        keys = self._keys()
        for position in range(bisect_left(keys, prefix), len(keys)):
            if not keys[position].startswith(prefix):
                return
            yield keys[position]

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The next part of every key under a prefix, each once."""
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        keys = self._keys()
        position = bisect_left(keys, folder)
        told = set()  # a key may have others below it
        while position < len(keys) and keys[position].startswith(folder):
            name, slash, _ = keys[position][len(folder) :].partition("/")
            if name not in told:
                yield name
            told.add(name)
            # Behind all that begins with this part: "0" is what follows "/".
            position = bisect_left(keys, f"{folder}{name}0") if slash else position + 1

    def _under(self, prefix: str) -> Iterable[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        keys = self._keys()
        for position in range(bisect_left(keys, folder), len(keys)):
            if not keys[position].startswith(folder):
                return
            yield keys[position]


class CheckpointStore(ContentStore):
    """A checkpoint as a Zarr store; read-only, as no checkpoint ever changes.

    url: of the repository. rev: any revision, resolved once. The document of the root group has in its attributes the
    checkpoint's id, step, metrics, message and time, and all other documents beside them, so that opening takes one read.
    Every byte is checked against its digest, and only the chunks that are asked for are read. It pickles.
    """

    def __init__(self, url: str, rev: str = "main") -> None:
        storage = open_storage(url)
        if storage.size(MARKER_KEY) is None:
            raise NotFoundError(f"{storage.url} is not a repository.")
        catalog = Catalog(storage, ObjectStore(storage))
        self._show(resolve(rev, catalog.names(Oplog(storage).newest())), catalog)

    @classmethod
    def of(cls, id: Digest, catalog: Catalog) -> Self:
        """The store of a checkpoint of a repository that is open."""
        made = cls.__new__(cls)
        made._show(id, catalog)  # noqa: SLF001 - it is ours
        return made

    def _show(self, id: Digest, catalog: Catalog) -> None:
        super().__init__(read_only=True)
        catalog.refuse_expired(id)
        self._id, self._catalog = id, catalog
        self._manifest = catalog.manifest(id)
        self._cached = CachedObjects(catalog.objects)
        self._found: Contents | None = None
        self._sorted: list[str] | None = None
        self._lock = RLock()

    def is_array(self, path: str) -> bool:
        """True when there is an array at this path."""
        found = self._contents().get(join(path, METADATA))
        if found is None:
            return join(path, ".zarray") in self._contents()
        document = parsed(document_bytes(path, found, self._cached))
        return document is not None and document["node_type"] == "array"

    def _contents(self) -> Contents:
        with self._lock:
            if self._found is None:
                with self._reading():
                    found = contents_of(self._manifest, self._catalog)
                told = facts(self._id, self._manifest)
                self._found = found | completed_root(found, self._cached, told)
            return self._found

    def _keys(self) -> list[str]:
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._contents())
            return self._sorted

    def _objects(self) -> CachedObjects:
        return self._cached

    def _reading(self) -> AbstractContextManager[None]:
        return self._catalog.reading(self._id)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._catalog.url, "id": self._id, "is_open": self._is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        storage = open_storage(state["url"])
        self._show(state["id"], Catalog(storage, ObjectStore(storage)))
        self._is_open = state["is_open"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckpointStore) and (self._id, self._catalog.url) == (
            other._id,
            other._catalog.url,
        )

    def __hash__(self) -> int:
        return hash((self._id, self._catalog.url))

    def __repr__(self) -> str:
        return f"CheckpointStore({self._catalog.url!r}, {self._id.short!r})"

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store; InvalidInputError when it is to be written to."""
        if not read_only:
            raise InvalidInputError(
                "A checkpoint never changes. Write to the next one: with repo.session(branch) as s: use s.store."
            )
        return self.of(self._id, self._catalog)

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()


def open_group(store: CheckpointStore) -> zarr.Group:
    """The root group. An array whose document zarr-python cannot take is an error only where that array is opened."""
    try:
        return zarr.open_group(store, mode="r")
    except Exception as error:  # whatever one of the documents brings about
        if store.is_array(""):
            raise NotFoundError(
                f"{store!r} is an array, not a group. checkpoint.array({ROOT!r}) reads it."
            ) from error
        try:
            return zarr.open_group(store, mode="r", use_consolidated=False)
        except CkptStoreError:
            raise
        except FileNotFoundError as error:
            raise NotFoundError(f"{store!r} has no group at its root.") from error
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorruptError(f"{store!r} cannot be opened: {said[:300].rstrip('.')}.") from error


def facts(id: Digest, manifest: Manifest) -> dict[str, Any]:
    """What the attributes of the root group tell of a checkpoint. NaN and infinite metrics are strings, as in Zarr."""
    return {
        "id": str(id),
        "step": manifest.step,
        "metrics": {name: _metric(value) for name, value in manifest.metrics.items()},
        "message": manifest.message,
        "created": datetime.fromtimestamp(manifest.created / 1e6, tz=UTC).isoformat(),
    }


def span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Where a part of so many bytes begins and ends."""
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        start, stop = byte_range.start, byte_range.end
    elif isinstance(byte_range, OffsetByteRequest):
        start, stop = byte_range.offset, size
    elif isinstance(byte_range, SuffixByteRequest):
        start, stop = size - byte_range.suffix, size
    else:
        raise TypeError(f"Unexpected byte_range, got {byte_range}.")
    start = min(max(0, start), size)
    return start, max(start, min(stop, size))


def _metric(value: float) -> float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")

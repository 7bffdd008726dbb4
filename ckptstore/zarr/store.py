"""CheckpointStore: a checkpoint as a read-only store of zarr-python.

This module reads and lists keys; `contents` decides what they are, and `session` has the writable
store. See docs/adr/0016 and section 10.5 of docs/reference/format.md.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

from ckptstore.documents.marker import MARKER_KEY
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.documents.zarr_document import METADATA
from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    first_line,
)
from ckptstore.revisions import resolve
from ckptstore.state.paths import ROOT
from ckptstore.storage import open_storage
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog
from ckptstore.times import utc
from ckptstore.zarr import dtypes
from ckptstore.zarr.checked_reads import CheckedReads, UnpackedReads
from ckptstore.zarr.contents import (
    View,
    document_bytes,
    join,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.zarr.contents import Content


assert dtypes.ALL, "importing the module registers its types with zarr-python"


class Stored(NamedTuple):
    """The number of the values below a node, and their bytes."""

    values: int
    nbytes: int


class ContentStore(Store):
    """Base of both stores: reading and listing keys.

    Attributes:
        bytes_max: The most bytes that a chunk, or an array, may take; None for a default that
            depends on what is stored of it (see `check_unpacked`).
    """

    supports_deletes: bool = False
    supports_listing: bool = True
    supports_writes: bool = False
    _reads_of: type[CheckedReads] = CheckedReads

    def __init__(self, *, read_only: bool, bytes_max: int | None = None) -> None:
        super().__init__(read_only=read_only)
        self.bytes_max = bytes_max
        self._reads = self._reads_of(bytes_max)

    @abstractmethod
    def _view(self) -> View:
        """The keys and values."""

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value of a key or a range of its bytes, as `get`."""
        content = self._view().contents.get(key)
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
        """The value of a key or a range of its bytes; None for a missing key.

        Raises:
            CorruptError: An object is missing, or its bytes do not match their digest.
            ExpiredError: The checkpoint has expired since the store was opened.
            InvalidInputError: The array has a dtype or codec that is not decoded, or the chunk
                would take much more memory than is stored of it.
            StorageError: The storage failed.
        """
        if not self._is_open:
            await self._open()
        content = self._view().contents.get(key)
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
        view = self._view()
        with view.reading():
            data = self._reads.read(view, key, content, start, stop)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Ranges of several values."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """True when a key has a value."""
        return key in self._view().contents

    async def getsize(self, key: str) -> int:
        """Bytes of a value; FileNotFoundError for a missing key."""
        content = self._view().contents.get(key)
        if content is None:
            raise FileNotFoundError(key)
        return content.size

    def stored(self, path: str) -> Stored:
        """What is stored below a node: its values and their bytes."""
        contents = self._view().contents
        sizes = [contents[key].size for key in self._under(path)]
        return Stored(len(sizes), sum(sizes))

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values under a prefix."""
        contents = self._view().contents
        return sum(contents[key].size for key in self._under(prefix))

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in self._view().sorted_keys:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with a prefix."""
        for key in self._beginning_with(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The next path component of every key under a prefix, each once."""
        folder = _folder(prefix)
        keys = self._view().sorted_keys
        position = bisect_left(keys, folder)
        names = set()  # a key may have others below it
        while position < len(keys) and keys[position].startswith(folder):
            name, slash, _ = keys[position][len(folder) :].partition("/")
            if name not in names:
                yield name
            names.add(name)
            # Skip everything below this component: "0" is the character after "/".
            position = bisect_left(keys, f"{folder}{name}0") if slash else position + 1

    def _under(self, prefix: str) -> Iterable[str]:
        return self._beginning_with(_folder(prefix))

    def _beginning_with(self, prefix: str) -> Iterable[str]:
        keys = self._view().sorted_keys
        for position in range(bisect_left(keys, prefix), len(keys)):
            if not keys[position].startswith(prefix):
                return
            yield keys[position]


class CheckpointStore(ContentStore):
    """A checkpoint as a Zarr v3 store. Read-only, because checkpoints never change.

    The attributes of the root group carry the checkpoint's id, step, metrics, message and time, and
    its metadata is consolidated, so that opening the hierarchy takes one read. Only requested
    chunks are read, and every byte is checked against its digest. A pickled store opens the
    repository again where it is unpickled. The methods are those of `zarr.abc.store.Store`. See
    docs/adr/0016.

    Args:
        url: The repository: a folder, or a URL as for `ckptstore.open`.
        rev: Any revision. It is resolved once, so the store does not follow a moving branch.
        bytes_max: The most bytes of memory that a chunk may take. By default, 64 MiB and 100 times
            the bytes that are stored of it.

    Raises:
        NotFoundError: There is no repository, or no such revision.
        ExpiredError: The checkpoint has expired.
        CorruptError: A document of the repository is damaged.

    Example:
        >>> import ckptstore, numpy as np, zarr
        >>> from ckptstore.zarr import CheckpointStore
        >>> repo = ckptstore.init("memory://checkpoint-store-example")
        >>> checkpoint = repo.commit({"weight": np.arange(4)}, step=100)
        >>> group = zarr.open_group(CheckpointStore(repo.url, "main"), mode="r")
        >>> group["weight"][1:3]
        array([1, 2])
        >>> group.attrs["step"]
        100
    """

    def __init__(self, url: str, rev: str = "main", *, bytes_max: int | None = None) -> None:
        storage = open_storage(url)
        if storage.size(MARKER_KEY) is None:
            raise NotFoundError(f"{storage.url} is not a repository.")
        catalog = Catalog(storage, ObjectStore.cached(storage))
        self._show(resolve(rev, catalog.names(Oplog(storage).newest())), catalog, bytes_max)

    @classmethod
    def of(cls, id: Digest, catalog: Catalog, *, bytes_max: int | None = None) -> Self:
        """The store of a checkpoint of an open repository."""
        store = cls.__new__(cls)
        store._show(id, catalog, bytes_max)  # noqa: SLF001 - its own class
        return store

    def _show(self, id: Digest, catalog: Catalog, bytes_max: int | None) -> None:
        super().__init__(read_only=True, bytes_max=bytes_max)
        catalog.refuse_expired(id)
        self._id, self._catalog = id, catalog
        manifest = catalog.manifest(id)
        self._shown = View(id, manifest, catalog, attributes=facts(id, manifest))

    def is_array(self, path: str) -> bool:
        """True when the node at a path is an array.

        Args:
            path: The path of a node, such as "model/weight".
        """
        contents = self._shown.contents
        content = contents.get(join(path, METADATA))
        if content is None:
            return join(path, ".zarray") in contents
        document = parsed(document_bytes(path, content, self._shown.objects))
        return document is not None and document["node_type"] == "array"

    def _view(self) -> View:
        return self._shown

    def __getstate__(self) -> dict[str, Any]:
        return {
            "url": self._catalog.url,
            "id": self._id,
            "is_open": self._is_open,
            "bytes_max": self.bytes_max,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        storage = open_storage(state["url"])
        self._show(state["id"], Catalog(storage, ObjectStore.cached(storage)), state["bytes_max"])
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
        """The same store; InvalidInputError unless `read_only` is true."""
        if not read_only:
            raise InvalidInputError(
                "A checkpoint never changes. To write the next one, use the store of "
                "repo.session(branch)."
            )
        return self.of(self._id, self._catalog, bytes_max=self.bytes_max)

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()

    async def delete_dir(self, prefix: str) -> None:  # noqa: ARG002
        """Refused: a checkpoint never changes."""
        self._check_writable()


class DecodedStore(CheckpointStore):
    """The store of `ZarrArray`, not for others: some chunks are not the bytes that are stored."""

    _reads_of = UnpackedReads


def open_group(store: CheckpointStore) -> zarr.Group:
    """The root group.

    An array whose document zarr-python rejects is an error only when that array is opened.

    Raises:
        NotFoundError: The root is an array, or there is no group.
        CorruptError: zarr-python cannot open the root.
    """
    try:
        return zarr.open_group(store, mode="r")
    except Exception as error:  # a document below the root can raise anything
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
            raise CorruptError(f"{store!r} cannot be opened: {first_line(error)}.") from error


def facts(id: Digest, manifest: Manifest) -> dict[str, Any]:
    """The attributes of the root group. NaN and infinite metrics are strings, as in Zarr."""
    return {
        "id": str(id),
        "step": manifest.step,
        "metrics": {name: _metric(value) for name, value in manifest.metrics.items()},
        "message": manifest.message,
        "created": utc(manifest.created).isoformat(),
    }


def span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """The first byte of a range within `size` bytes, and the byte after its last."""
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


def _folder(prefix: str) -> str:
    """A prefix that ends with a slash, or "" for the root."""
    return f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""


def _metric(value: float) -> float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")

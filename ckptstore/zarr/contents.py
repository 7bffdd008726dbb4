"""Contents: a checkpoint as the keys and values of a Zarr store.

Arrays of states appear as uncompressed Zarr arrays: their documents are computed here, their chunks
are the stored objects. Values that were committed through Zarr appear unchanged. Nothing is read
before it is requested, and every byte is checked against its digest. Nothing here decodes a chunk.
See docs/adr/0016 and section 10.5 of docs/reference/format.md.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ckptstore.arrays.memory_limit import check_memory
from ckptstore.documents import canonical, zarr_document
from ckptstore.documents.chunks import is_contiguous
from ckptstore.documents.dtypes import word
from ckptstore.documents.marker import CHUNK_BYTES_DEFAULT
from ckptstore.documents.nodes import DictNode
from ckptstore.documents.structure import is_same
from ckptstore.documents.zarr_document import METADATA, NODE_DOCUMENTS
from ckptstore.errors import InvalidInputError
from ckptstore.forks import cached_property, free_in_child
from ckptstore.state.tree import arrays
from ckptstore.zarr.encoded_entries import check_document
from ckptstore.zarr.encoding import Encoding
from ckptstore.zarr.folder_read import description
from ckptstore.zarr.graft import graft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from ckptstore.digest import Digest
    from ckptstore.documents.chunks import Chunk
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.nodes import Node
    from ckptstore.documents.page import ArrayEntry, Bundle
    from ckptstore.documents.zarr_page import Value
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore

PIECE_BYTES = CHUNK_BYTES_DEFAULT  # of a value that is exported in pieces; usually a whole chunk
DOCUMENTS_VALUES_MAX = 500_000  # JSON values in all documents of a hierarchy: some 14,000 arrays
CONSOLIDATED_BYTES_MAX = 24 << 20  # of consolidated metadata, which is one document to a reader
# Upper bounds on a computed document: that of an array without dimensions, plus so much for each
# dimension and for each letter of its name.
MADE_VALUES, MADE_BYTES = 28, 600
AXIS_VALUES, AXIS_BYTES, LETTER_BYTES = 4, 60, 12
HELD_BYTES = 64 << 20  # cache of bundles, and of segments that are read in parts


class Content(Protocol):
    """The value of a key."""

    @property
    def size(self) -> int:
        """Bytes of the value."""
        ...

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start` to `stop` of the value."""
        ...


class CachedObjects:
    """The objects of a repository, with a cache of those that are read in parts."""

    def __init__(self, objects: ObjectStore) -> None:
        self.store = objects.alone()  # zarr-python usually reads one chunk after another
        self._held: OrderedDict[Digest, memoryview] = OrderedDict()
        self._begun: set[Digest] = set()  # bundles of which a value was read
        self._lock = free_in_child(Lock())

    def whole(self, digest: Digest, size: int) -> memoryview:
        """All bytes of an object, checked and cached."""
        known = self._known(digest, size)
        if known is not None:
            return known
        data = _memory(size)
        self.store.read_into(digest, data)
        return self._hold(digest, data)

    def bundled(self, bundle: Bundle, digest: Digest, *, start: int, size: int) -> memoryview:
        """A small value, checked.

        The first value of a bundle is read alone. A second request reads the whole bundle, as more
        are likely to follow.
        """
        known = self._known(digest, size)
        if known is not None:
            return known
        with self._lock:
            is_first = bundle.digest not in self._begun
            self._begun.add(bundle.digest)
        if not is_first:
            return self.whole(bundle.digest, bundle.size)[start : start + size]
        data = _memory(size)
        self.store.read_range(bundle.digest, data, start=start, expected=digest)
        return self._hold(digest, data)

    def _known(self, digest: Digest, size: int) -> memoryview | None:
        """The cached bytes of a digest; None also when a forged page claims another size for it."""
        with self._lock:
            if digest in self._held:
                self._held.move_to_end(digest)
            data = self._held.get(digest)
        return data if data is not None and len(data) == size else None

    def _hold(self, digest: Digest, data: memoryview) -> memoryview:
        """Cache bytes, read-only from now on because several readers share them."""
        with self._lock:
            data = self._held[digest] = data.toreadonly()
            while len(self._held) > 1 and sum(map(len, self._held.values())) > HELD_BYTES:
                self._held.popitem(last=False)
        return data


class InMemory:
    """A value whose bytes are in memory."""

    __slots__ = ()
    data: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.data)

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start` to `stop` of the value."""
        del objects
        return memoryview(self.data)[start:stop]


@dataclass(frozen=True, slots=True)
class Held(InMemory):
    """A small value that waits for a commit."""

    data: bytes | memoryview


class Made(InMemory):
    """A document that is computed on first use.

    Attributes:
        array: The path in the state of the array that it describes; None for a group.
    """

    def __init__(self, make: Callable[[], Mapping[str, Any]], array: str | None = None) -> None:
        self._make = make
        self.array = array

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The document as JSON values."""
        return self._make()

    @cached_property
    def data(self) -> bytes:  # computed, not set
        """The document as bytes."""
        return json.dumps(self.document).encode("ascii")

    @property
    def extent(self) -> tuple[int, int]:
        """Upper bounds on its JSON values and bytes, without encoding it."""
        axes = self.document.get("dimension_names", ())
        size = MADE_BYTES + sum(AXIS_BYTES + LETTER_BYTES * len(axis) for axis in axes)
        return MADE_VALUES + AXIS_VALUES * len(axes), size


@dataclass(frozen=True, slots=True)
class Stored:
    """A value that was set through Zarr."""

    value: Value
    segment_bytes: int
    bundle: Bundle | None = None

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.value.size

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start` to `stop` of the value. Only the segments that these touch are read."""
        value = self.value
        if value.offset is not None and self.bundle is not None:
            data = objects.bundled(
                self.bundle, value.digests[0], start=value.offset, size=value.size
            )
            return data[start:stop]
        check_memory([stop - start])
        result = _memory(stop - start)
        for number in range(start // self.segment_bytes, -(-stop // self.segment_bytes)):
            begin = number * self.segment_bytes
            size = min(self.segment_bytes, value.size - begin)
            low, high = max(start, begin), min(stop, begin + size)
            part = result[low - start : high - start]
            if high - low == size:
                objects.store.read_into(value.digests[number], part)
            else:
                part[:] = objects.whole(value.digests[number], size)[low - begin : high - begin]
        return result


@dataclass(frozen=True, slots=True)
class ArrayChunk:
    """A chunk of an array of a state, padded with zeros to the full chunk shape as Zarr requires.

    Attributes:
        array: The array's path in the state.
        digest: The digest of the stored bytes.
        stored_bytes: Bytes without the padding.
        size: Bytes with the padding.
        bundle: The object that holds the bytes of a small array.
        offset: Where in the bundle they begin.
        short: How to pad a chunk if zeros are needed elsewhere than at its end.
    """

    array: str
    digest: Digest
    stored_bytes: int
    size: int
    bundle: Bundle | None = None
    offset: int = 0
    short: Short | None = None

    def is_object(self, segment_bytes: int) -> bool:
        """True when the padded chunk is exactly one object, no longer than a segment."""
        return self.bundle is None and self.stored_bytes == self.size <= segment_bytes

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """Bytes `start` to `stop` of the padded chunk."""
        if self.bundle is not None:
            return objects.bundled(
                self.bundle, self.digest, start=self.offset, size=self.stored_bytes
            )[start:stop]
        if self.short is None and (start, stop) == (0, self.size):
            made = _memory(self.size)
            objects.store.read_into(self.digest, made[: self.stored_bytes])
            made[self.stored_bytes :] = bytes(self.size - self.stored_bytes)
            return made
        data = objects.whole(self.digest, self.stored_bytes)
        if self.short is not None:
            return self.short.padded(data)[start:stop]
        return bytes(data[start:stop]).ljust(stop - start, b"\0")


@dataclass(frozen=True, slots=True)
class Short:
    """A chunk at the end of a dimension that is not the first one cut.

    Attributes:
        shape: Its shape.
        chunk_shape: The shape of chunks that are not at the end.
        word: Numpy dtype to move its elements with.
    """

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    word: str

    def padded(self, data: memoryview) -> memoryview:
        """The bytes of a whole chunk, zeros behind each row of this one."""
        made = np.zeros(self.chunk_shape, self.word)
        part = made[tuple(slice(0, length) for length in self.shape)]
        part[...] = np.frombuffer(data, self.word).reshape(self.shape)
        flat: Any = made.reshape(-1).view(np.uint8)
        return memoryview(flat)


Contents = dict[str, Content]


def _memory(size: int) -> memoryview:
    """Uninitialized writable memory: zeros would be overwritten at once."""
    fresh: Any = np.empty(size, np.uint8)
    return memoryview(fresh)


def contents_of(manifest: Manifest, catalog: Catalog) -> Contents:
    """Every key of a checkpoint. Values set through Zarr take precedence over computed ones."""
    contents: Contents = {}
    groups: set[str] = set() if manifest.hierarchy is not None else {""}
    for page in catalog.pages(manifest):
        for entry in page.entries:
            path = zarr_document.node_path(entry.path)
            contents |= _array(path, entry, page.bundle)
            groups.update(zarr_document.above(path))
    for path in groups:
        contents[join(path, METADATA)] = Made(lambda: zarr_document.group_document({}))
    for nodes in catalog.node_pages(manifest):
        for node in nodes.nodes:
            for key, value in node.values:
                contents[join(node.path, key)] = Stored(value, nodes.segment_bytes, nodes.bundle)
    return contents


class View:
    """The keys and values of a checkpoint. Safe to use from several threads.

    Args:
        id: The checkpoint; None where there is none yet.
        manifest: Its manifest; None for no contents.
        catalog: The repository's documents and objects.
        attributes: Further attributes of the root group, whose metadata is then consolidated too.

    Attributes:
        objects: Where contents are read from.
    """

    def __init__(
        self,
        id: Digest | None,
        manifest: Manifest | None,
        catalog: Catalog,
        *,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.id, self.manifest, self.catalog = id, manifest, catalog
        self.objects = CachedObjects(catalog.objects)
        self._attributes = attributes
        self._contents: Contents | None = None if manifest else {}
        self._sorted: list[str] | None = None
        self._lock = free_in_child(RLock())

    @property
    def contents(self) -> Contents:
        """Every value by key. Read on first use, as many sessions end with their first commit."""
        with self._lock:
            if self._contents is None:
                assert self.manifest
                with self.reading():
                    contents = contents_of(self.manifest, self.catalog)
                if self._attributes is not None:
                    contents |= completed_root(contents, self.objects, self._attributes)
                self._contents = contents
            return self._contents

    def reading(self) -> AbstractContextManager[None]:
        """A context for every read: raises ExpiredError where a missing object means expiry."""
        return nullcontext() if self.id is None else self.catalog.reading(self.id)

    @property
    def sorted_keys(self) -> list[str]:
        """Every key, in order."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self.contents)
            return self._sorted


class ZarrValues:
    """The values of a checkpoint for export, which `formats.write_file` writes to a folder.

    Where it also holds a state, the attributes of the root group carry the state's structure; see
    docs/adr/0018.
    """

    def __init__(self, id: Digest, manifest: Manifest, catalog: Catalog) -> None:
        self._view = View(id, manifest, catalog)
        with self._view.reading():
            root = catalog.structure(manifest)
        self._contents = self._view.contents
        if manifest.pages or not _is_bare(root, self._contents):
            self._contents |= completed_root(self._contents, self._view.objects, description(root))

    def keys(self) -> list[str]:
        """Every key of the store, in order."""
        return sorted(self._contents)

    @property
    def nbytes(self) -> int:
        """Bytes of all values, before any is read."""
        return sum(content.size for content in self._contents.values())

    def pieces(self, key: str) -> Iterator[bytes | memoryview]:
        """Yield the value of a key in pieces of at most PIECE_BYTES."""
        content = self._contents[key]
        for start in range(0, content.size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, content.size)
            with self._view.reading():
                piece = content.read(self._view.objects, start, stop)
            yield piece


def _is_bare(root: Node, contents: Contents) -> bool:
    """True for a structure that follows from the paths of the nodes alone."""
    listed = {node.path for node in arrays(root)}
    nodes = {key.rpartition("/")[0] for key in contents if key.rpartition("/")[2] in NODE_DOCUMENTS}
    implied = graft(DictNode({}), kept=(), converted={}, arrays=listed, groups=nodes - listed)
    return is_same(implied, root)


def completed_root(contents: Contents, objects: CachedObjects, more: Mapping[str, Any]) -> Contents:
    """The document of the root group with more attributes and with consolidated metadata.

    Empty where the root is not a Zarr v3 group. Consolidated metadata is left out where `documents`
    returns None.
    """
    root = contents.get(METADATA)
    document = None if root is None else parsed(document_bytes(METADATA, root, objects))
    if document is None or document["node_type"] != "group":
        return {}
    others = {key: content for key, content in contents.items() if key != METADATA}
    own = document.get("attributes", {})
    attributes = {**(own if isinstance(own, dict) else {}), **more}

    def make() -> dict[str, Any]:
        nodes = documents(others, objects)
        return zarr_document.group_document(
            attributes, None if nodes is None else dict(zarr_document.in_groups(nodes))
        )

    return {METADATA: Made(make)}


def documents(
    contents: Mapping[str, Content], objects: CachedObjects
) -> list[tuple[str, Any]] | None:
    """The path and the document of every valid Zarr v3 node, in path order.

    None when they exceed DOCUMENTS_VALUES_MAX or CONSOLIDATED_BYTES_MAX, or when an array is not to
    be decoded: then only that array must not be opened, not the whole group.
    """
    nodes = {
        key.rpartition("/")[0]: content
        for key, content in contents.items()
        if key.rpartition("/")[2] == METADATA
    }
    stored = (content.size for content in nodes.values() if not isinstance(content, Made))
    bytes_left, values_left = CONSOLIDATED_BYTES_MAX - sum(stored), DOCUMENTS_VALUES_MAX
    pairs = []
    for path in sorted(nodes):
        content = nodes[path]
        document: Mapping[str, Any] | None
        if isinstance(content, Made):  # no need to encode it and parse it again
            document, data = content.document, b""
            values, size = content.extent
            bytes_left -= size
        else:
            document, data = None, document_bytes(path, content, objects)
            values = canonical.values(data)
        values_left -= values
        if min(bytes_left, values_left) < 0:
            return None
        if data:
            document = parsed(data)
        if document is not None:
            if data and not _is_decoded(document):
                return None
            pairs.append((path, document))
    return pairs


def document_bytes(key: str, content: Content, objects: CachedObjects) -> bytes:
    """The bytes of a document; InvalidInputError, before any are read, when there are too many."""
    data = b""
    if content.size <= canonical.DOCUMENT_BYTES_MAX:
        data = bytes(content.read(objects, 0, content.size))
    check_document(key, data, size=content.size)
    return data


def _is_decoded(document: Mapping[str, Any]) -> bool:
    """True for a group, and for an array that may be decoded."""
    if document["node_type"] == "array":
        with suppress(InvalidInputError):
            Encoding.of(document, name="", is_v2=False)
            return True
    return bool(document["node_type"] == "group")


def parsed(data: bytes | memoryview) -> dict[str, Any] | None:
    """The document of a Zarr v3 node; None for anything else."""
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return None
    is_node = isinstance(document, dict) and document.get("zarr_format") == 3
    return document if is_node and document.get("node_type") in ("array", "group") else None


def join(path: str, key: str) -> str:
    """The key of the store for a key relative to a node's path."""
    return f"{path}/{key}" if path else key


def _array(path: str, entry: ArrayEntry, bundle: Bundle | None) -> Contents:
    """The keys of an array of a state: its document and its chunks."""
    is_small = entry.offset is not None
    chunk_shape, order = entry.shown_chunk_shape, entry.order
    bundle = bundle if is_small else None
    name = path.rpartition("/")[2]
    contents: Contents = {
        join(path, METADATA): Made(
            lambda: zarr_document.array_document(
                dtype=entry.dtype,
                shape=entry.shape,
                chunk_shape=chunk_shape,
                name=name,
                order=order,
            ),
            entry.path,
        )
    }
    keys = zarr_document.chunk_keys(entry.dtype, entry.shape, chunk_shape, order)
    size = zarr_document.padded_bytes(entry.dtype, chunk_shape)
    for key, (digest, chunk) in zip(keys, entry.grid(), strict=True):
        short = _short(chunk, entry.stored_chunk_shape, entry.dtype)
        contents[join(path, key)] = ArrayChunk(
            entry.path, digest, chunk.size, size, bundle, entry.offset or 0, short
        )
    return contents


def _short(chunk: Chunk, chunk_shape: tuple[int, ...], dtype: str) -> Short | None:
    """How to pad a chunk, where zeros behind it do not do."""
    shape = tuple(part.stop - part.start for part in chunk.index)
    if is_contiguous(chunk_shape, shape):
        return None
    return Short(shape, chunk_shape, word(dtype))

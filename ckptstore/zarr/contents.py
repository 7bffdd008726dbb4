"""Contents: what a checkpoint holds, as the keys and values of a Zarr store.

Arrays of states appear as uncompressed Zarr arrays, whose documents are made here and whose chunks are the objects that are
there; what came in through Zarr appears as it was set. Nothing is read before it is asked for, and nothing is handed out
that was not held against its digest.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ckptstore.arrays.memory import check_memory
from ckptstore.documents import canonical, zarr_document
from ckptstore.documents.chunks import chunks
from ckptstore.documents.dtypes import item_bytes
from ckptstore.documents.marker import CHUNK_BYTES_DEFAULT
from ckptstore.documents.structure import array_path
from ckptstore.errors import InvalidInputError
from ckptstore.state.tree import leaves
from ckptstore.zarr.encoded_entries import check_document
from ckptstore.zarr.folder_read import telling
from ckptstore.zarr.graft import graft
from ckptstore.zarr.hierarchy import ZarrValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import ArrayEntry, Bundle
    from ckptstore.documents.structure import Node
    from ckptstore.documents.zarr_page import Value
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore

PIECE_BYTES = CHUNK_BYTES_DEFAULT  # of a longer value; a chunk as a rule
DOCUMENTS_VALUES_MAX = 500_000  # of all documents of a hierarchy; some 14,000 arrays
CONSOLIDATED_BYTES_MAX = 24 << 20  # with long values; a root is read again as one document
MADE_VALUES, MADE_BYTES = 28, 600  # of a document that is made, at most: of an array without axes,
AXIS_VALUES, AXIS_BYTES, LETTER_BYTES = 4, 60, 12  # for each axis, and for each letter of its name
HELD_BYTES = 64 << 20  # bundles and segments of larger values that were read in part
METADATA = "zarr.json"
NODE_DOCUMENTS = frozenset({METADATA, ".zarray", ".zgroup"})
ARRAY_DOCUMENTS = frozenset({METADATA, ".zarray", ".zmetadata"})  # the last one has all, in Zarr v2


class Content(Protocol):
    """What a key holds."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """A part of them."""
        ...


class CachedObjects:
    """The objects of a repository, with the last of those held that are read a part at a time."""

    def __init__(self, objects: ObjectStore) -> None:
        self.store = objects.alone()  # zarr-python reads one chunk after another, as a rule
        self._held: OrderedDict[Digest, memoryview] = OrderedDict()
        self._begun: set[Digest] = set()  # bundles of which a value was read
        self._lock = Lock()

    def whole(self, digest: Digest, size: int) -> memoryview:
        """All bytes of an object, checked; read once while it is held."""
        known = self._known(digest, size)
        if known is not None:
            return known
        data = _memory(size)
        self.store.read_into(digest, data)
        return self._hold(digest, data)

    def bundled(self, bundle: Bundle, digest: Digest, *, start: int, size: int) -> memoryview:
        """A small value, checked. The first of a bundle is read by itself; who wants a second one gets them all at once."""
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
        """What is held of this digest. A page may lie about the size: then it is not what was asked for."""
        with self._lock:
            if digest in self._held:
                self._held.move_to_end(digest)
            data = self._held.get(digest)
        return data if data is not None and len(data) == size else None

    def _hold(self, digest: Digest, data: memoryview) -> memoryview:
        """Keep it for the next who asks, so that nobody can write to it from now on."""
        with self._lock:
            held = self._held[digest] = data.toreadonly()
            while len(self._held) > 1 and sum(map(len, self._held.values())) > HELD_BYTES:
                self._held.popitem(last=False)
        return held


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in memory."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data)

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """A part of them."""
        del objects
        return memoryview(self.data)[start:stop]


class Made:
    """A document that is made when it is asked for. array: the path in the state of the array that it is of, or None."""

    def __init__(self, make: Callable[[], Mapping[str, Any]], array: str | None = None) -> None:
        self._make = make
        self.array = array

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """What it says."""
        return self._make()

    @cached_property
    def data(self) -> bytes:
        """Its bytes."""
        return json.dumps(self.document).encode("ascii")

    @property
    def extent(self) -> tuple[int, int]:
        """How many values and bytes it has, at most, without making these."""
        axes = self.document.get("dimension_names", ())
        size = MADE_BYTES + sum(AXIS_BYTES + LETTER_BYTES * len(axis) for axis in axes)
        return MADE_VALUES + AXIS_VALUES * len(axes), size

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data)

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """A part of them."""
        del objects
        return memoryview(self.data)[start:stop]


@dataclass(frozen=True, slots=True)
class Stored:
    """A value that came in through Zarr."""

    value: Value
    segment_bytes: int
    bundle: Bundle | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.value.size

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """A part of them; no segment is read that is not needed."""
        value = self.value
        if value.offset is not None and self.bundle is not None:
            data = objects.bundled(
                self.bundle, value.digests[0], start=value.offset, size=value.size
            )
            return data[start:stop]
        check_memory([stop - start])
        made = _memory(stop - start)
        for number in range(start // self.segment_bytes, -(-stop // self.segment_bytes)):
            begin = number * self.segment_bytes
            size = min(self.segment_bytes, value.size - begin)
            low, high = max(start, begin), min(stop, begin + size)
            part = made[low - start : high - start]
            if high - low == size:
                objects.store.read_into(value.digests[number], part)
            else:
                part[:] = objects.whole(value.digests[number], size)[low - begin : high - begin]
        return made


@dataclass(frozen=True, slots=True)
class ArrayChunk:
    """A chunk of an array of a state; Zarr wants the last one as long as the others, so zeros are added to it.

    array: the path in the state. size: with these zeros. stored_bytes: without.
    """

    array: str
    digest: Digest
    stored_bytes: int
    size: int
    bundle: Bundle | None = None
    offset: int = 0

    def is_object(self, segment_bytes: int) -> bool:
        """True when all of it, as Zarr wants it, is one object that is no longer than a segment."""
        return self.bundle is None and self.stored_bytes == self.size <= segment_bytes

    def read(self, objects: CachedObjects, start: int, stop: int) -> bytes | memoryview:
        """A part of it."""
        if self.bundle is not None:
            data = objects.bundled(
                self.bundle, self.digest, start=self.offset, size=self.stored_bytes
            )
            part = data[start:stop]
            if len(part) == stop - start:
                return part
            return bytes(part).ljust(stop - start, b"\0")
        if (start, stop) == (0, self.size):
            made = _memory(self.size)
            objects.store.read_into(self.digest, made[: self.stored_bytes])
            made[self.stored_bytes :] = bytes(self.size - self.stored_bytes)
            return made
        part = objects.whole(self.digest, self.stored_bytes)[start:stop]
        return bytes(part).ljust(stop - start, b"\0")


Contents = dict[str, Content]


def _memory(size: int) -> memoryview:
    """Writable memory with whatever lies there: zeros would be written over at once."""
    fresh: Any = np.empty(size, np.uint8)
    return memoryview(fresh)


def contents_of(manifest: Manifest, catalog: Catalog) -> Contents:
    """Every key of a checkpoint. What came in through Zarr comes before what is made of a state."""
    found: Contents = {}
    groups: set[str] = set() if manifest.hierarchy is not None else {""}
    for page in catalog.pages(manifest):
        for entry in page.entries:
            path = zarr_document.node_path(entry.path)
            found |= _array(path, entry, page.bundle)
            groups.update(zarr_document.above(path))
    for path in groups:
        found[join(path, METADATA)] = Made(lambda: zarr_document.group_document({}))
    for nodes in catalog.node_pages(manifest):
        for node in nodes.nodes:
            for key, value in node.values:
                found[join(node.path, key)] = Stored(value, nodes.segment_bytes, nodes.bundle)
    return found


class Values(ZarrValues):
    """The values of a checkpoint as they were set; where it holds a state besides, the root tells its structure."""

    def __init__(self, id: Digest, manifest: Manifest, catalog: Catalog) -> None:
        self._reading = partial(catalog.reading, id)
        with self._reading():
            root = catalog.structure(manifest)
            self._contents = contents_of(manifest, catalog)
        self._objects = CachedObjects(catalog.objects)
        if manifest.pages or not _is_bare(root, self._contents):
            self._contents |= completed_root(self._contents, self._objects, telling(root))

    def keys(self) -> Iterator[str]:
        """Every key of the store, in order."""
        return iter(sorted(self._contents))

    def pieces(self, key: str) -> Iterator[bytes | memoryview]:
        """What a key holds, a piece at a time."""
        content = self._contents[key]
        for start in range(0, content.size, PIECE_BYTES):
            with self._reading():
                piece = content.read(self._objects, start, min(start + PIECE_BYTES, content.size))
            yield piece


def _is_bare(root: Node, contents: Contents) -> bool:
    """True for a structure that whoever has the nodes can tell."""
    arrays = {path for _, node in leaves(root) if (path := array_path(node)) is not None}
    nodes = {key.rpartition("/")[0] for key in contents if key.rpartition("/")[2] in NODE_DOCUMENTS}
    told = graft({"dict": []}, kept=(), converted={}, arrays=arrays, groups=nodes - arrays)
    return bool(told == root)


def completed_root(contents: Contents, objects: CachedObjects, more: Mapping[str, Any]) -> Contents:
    """The document of the root group with more attributes, and with all other documents; nothing where the root is no group."""
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
    """The path and the document of every Zarr v3 node, in path order; what is no such document is left out.

    None when they are more than anybody wants to parse at once.
    """
    nodes = {
        key.rpartition("/")[0]: content
        for key, content in contents.items()
        if key.rpartition("/")[2] == METADATA
    }
    stored = (content.size for content in nodes.values() if not isinstance(content, Made))
    bytes_left, values_left = CONSOLIDATED_BYTES_MAX - sum(stored), DOCUMENTS_VALUES_MAX
    found = []
    for path in sorted(nodes):
        content = nodes[path]
        document: Mapping[str, Any] | None
        if isinstance(content, Made):  # it need not become bytes to be parsed again
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
            refuse_pickle(join(path, METADATA), content, objects)
            document = parsed(data)
        if document is not None:
            found.append((path, document))
    return found


def document_bytes(key: str, content: Content, objects: CachedObjects) -> bytes:
    """The bytes of a document. InvalidInputError for more than anybody wants to parse, before they are read."""
    data = b""
    if content.size <= canonical.DOCUMENT_BYTES_MAX:
        data = bytes(content.read(objects, 0, content.size))
    check_document(key, data, size=content.size)
    return data


def refuse_pickle(key: str, content: Content, objects: CachedObjects) -> None:
    """Raise InvalidInputError for the document of an array whose codecs unpickle: reading it could run code."""
    if key.rpartition("/")[2] not in ARRAY_DOCUMENTS:
        return
    data = document_bytes(key, content, objects)
    # Only an escape, or an encoding with zeros (UTF-16), can spell it otherwise.
    if b"pickle" not in data.lower() and b"\\u" not in data and b"\0" not in data:
        return
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return  # no array is made of it
    if _names_pickle(document):
        raise InvalidInputError(
            f"The Zarr array {key.rpartition('/')[0]!r:.200} is stored with pickle, and reading it could run code. "
            "Write it anew with other codecs."
        )


def _names_pickle(document: object) -> bool:
    """True when a codec, at any depth, has pickle in its name; a node's attributes may hold anything."""
    left = [document]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            names = (found.get("id"), found.get("name"))
            if any(isinstance(name, str) and "pickle" in name.lower() for name in names):
                return True
            is_node = isinstance(found.get("zarr_format"), int)
            left.extend(value for key, value in found.items() if key != "attributes" or not is_node)
        elif isinstance(found, list):
            left.extend(found)
    return False


def parsed(data: bytes | memoryview) -> dict[str, Any] | None:
    """The document of a Zarr v3 node, or None."""
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return None
    is_node = isinstance(document, dict) and document.get("zarr_format") == 3
    return document if is_node and document.get("node_type") in ("array", "group") else None


def join(path: str, key: str) -> str:
    """A key of the store from a node's path and a key below it."""
    return f"{path}/{key}" if path else key


def _array(path: str, entry: ArrayEntry, bundle: Bundle | None) -> Contents:
    """The keys of an array of a state."""
    item = item_bytes(entry.dtype, name=entry.path)
    is_small = entry.offset is not None
    chunk_shape = tuple(max(1, length) for length in entry.shape) if is_small else entry.chunk_shape
    name = path.rpartition("/")[2]
    found: Contents = {
        join(path, METADATA): Made(
            lambda: zarr_document.array_document(
                dtype=entry.dtype, shape=entry.shape, chunk_shape=chunk_shape, name=name
            ),
            entry.path,
        )
    }
    keys = zarr_document.chunk_keys(entry.dtype, entry.shape, chunk_shape)
    size = zarr_document.padded_bytes(entry.dtype, entry.shape, chunk_shape)
    if is_small:
        content = ArrayChunk(
            entry.path, entry.digests[0], entry.nbytes, size, bundle, entry.offset or 0
        )
        return found | {join(path, key): content for key in keys}
    grid = chunks(entry.shape, chunk_shape, item_bytes=item)
    for key, digest, chunk in zip(keys, entry.digests, grid, strict=True):
        found[join(path, key)] = ArrayChunk(entry.path, digest, chunk.size, size)
    return found

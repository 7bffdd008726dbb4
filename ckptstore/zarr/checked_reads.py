"""CheckedReads: what a store hands to zarr-python is checked first.

zarr-python, in this library or in a program of the user's, gets no document that names a dtype or
codec outside the allow-list, and no encoded chunk that contradicts its document. Arrays of a state
are uncompressed and described by documents that this library computes, so they pass. A range of an
encoded chunk, which no codec decodes alone, passes too. See docs/adr/0040.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

from zarr.core.group import GroupMetadata
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

from ckptstore.documents.zarr_document import METADATA, above
from ckptstore.errors import CkptStoreError, InvalidInputError, first_line
from ckptstore.forks import free_in_child
from ckptstore.zarr.contents import ArrayChunk, Made, document_bytes, join
from ckptstore.zarr.encoding import Encoding
from ckptstore.zarr.frames import Frame, Index, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.zarr.contents import Content, View

METADATA_V2, CONSOLIDATED_V2 = ".zarray", ".zmetadata"
_CHUNK = re.compile(r"c(?:[/.][0-9]+)*|[0-9]+(?:[/.][0-9]+)*")  # of both encodings of keys
NODES_DEPTH_MAX = 20  # of consolidated documents in each other
ENCODINGS_MAX, INDICES_MAX = 10_000, 64  # in the caches


class CheckedReads:
    """Reads values of a checkpoint for zarr-python. Safe to use from several threads."""

    def __init__(self, bytes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        self._encodings: OrderedDict[str, tuple[Content, Encoding]] = OrderedDict()
        self._indices: OrderedDict[str, tuple[Content, Index]] = OrderedDict()
        self._lock = free_in_child(Lock())

    def read(
        self, view: View, key: str, content: Content, start: int, stop: int
    ) -> bytes | memoryview:
        """Bytes `start` to `stop` of the value of a key.

        Raises:
            CorruptError: A chunk contradicts the document of its array.
            InvalidInputError: The document is outside the allow-list, or a chunk would take much
                more memory than it has bytes.
        """
        if isinstance(content, (Made, ArrayChunk)):
            return content.read(view.objects, start, stop)
        if key.rpartition("/")[2] in (METADATA, METADATA_V2, CONSOLIDATED_V2):
            check_node(key, document_bytes(key, content, view.objects))
        encoding = self._encoding(view, key)
        data = content.read(view.objects, start, stop)
        if encoding is not None:
            frame = Frame(key, memoryview(data), self._bytes_max)
            if stop - start == content.size:
                return self._checked(frame, encoding)
            if encoding.shards is not None:
                return self._checked_part(view, content, encoding, frame, Place(start, stop))
        return data

    def _checked(self, frame: Frame, encoding: Encoding) -> memoryview:
        """Check the bytes of an encoded chunk, and return what is handed out."""
        frame.check(encoding)
        return frame.data

    def _checked_part(
        self, view: View, content: Content, encoding: Encoding, frame: Frame, place: Place
    ) -> memoryview:
        """Check a range of a shard, if it is a chunk of it or its index."""
        assert encoding.shards is not None
        known = self._known(self._indices, frame.name, content)
        if known is None:
            where = Index.place(encoding.shards, content.size, frame=frame)
            data = memoryview(content.read(view.objects, *where))
            known = Index.read(encoding.shards, data, content.size, frame=frame)
            self._keep(self._indices, INDICES_MAX, frame.name, (content, known))
        if place in known.places:
            return self._checked(frame.part(place, frame.data), encoding.shards.inner)
        return frame.data

    def _encoding(self, view: View, key: str) -> Encoding | None:
        """The encoding of the array of which a key is a chunk, if it is one."""
        known: Encoding | None
        contents = view.contents
        for folder in above(key):
            if not _CHUNK.fullmatch(key[len(folder) + 1 :] if folder else key):
                continue
            for name in (METADATA, METADATA_V2):
                document_key = join(folder, name)
                document = contents.get(document_key)
                if document is None or isinstance(document, Made):
                    continue
                known = self._known(self._encodings, document_key, document)
                if known is None:
                    data = document_bytes(document_key, document, view.objects)
                    fields = _parsed(data)
                    known = None if fields is None else _described(fields, name, folder)
                    self._keep(self._encodings, ENCODINGS_MAX, document_key, (document, known))
                if known is not None:
                    return known
        return None

    def _known(self, cache: Mapping[str, tuple[Content, Any]], key: str, content: Content) -> Any:
        with self._lock:
            known = cache.get(key)
        return known[1] if known is not None and known[0] is content else None

    def _keep(self, cache: OrderedDict[str, Any], count_max: int, key: str, value: Any) -> None:
        with self._lock:
            cache[key] = value
            while len(cache) > count_max:
                cache.popitem(last=False)


class UnpackedReads(CheckedReads):
    """Reads for this library's own decoding: a chunk that was unpacked to be checked stays so."""

    def _checked(self, frame: Frame, encoding: Encoding) -> memoryview:
        return frame.unpacked_once(encoding)


def check_node(key: str, data: bytes) -> None:
    """Check a document before zarr-python gets it.

    Raises:
        InvalidInputError: It describes an array outside the allow-list, or zarr-python rejects it.
    """
    folder, _, name = key.rpartition("/")
    document = _parsed(data)
    if document is None:
        return  # zarr-python cannot parse it either
    for path, last, node in _nodes(folder, name, document):
        _described(node, last, path)
    try:
        if name == METADATA_V2:
            ArrayV2Metadata.from_dict(document)
        elif document.get("node_type") == "array":
            ArrayV3Metadata.from_dict(document)
        elif name == METADATA:
            GroupMetadata.from_dict(document)
    except (CkptStoreError, MemoryError):
        raise
    except Exception as error:
        raise InvalidInputError(
            f"zarr-python cannot open the node {folder!r:.200}: {first_line(error)}. Install what "
            "it needs (a codec, a dtype), or leave it out (exclude)."
        ) from error


def _nodes(
    path: str, name: str, document: dict[str, Any], depth: int = 0
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The path, key and document of each node in a document."""
    if name == CONSOLIDATED_V2:
        inside = document.get("metadata")
    else:
        yield path, name, document
        consolidated = document.get("consolidated_metadata")
        inside = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    for child, node in inside.items() if isinstance(inside, dict) else ():
        folder, _, last = child.rpartition("/")
        if name != CONSOLIDATED_V2:
            folder, last = child, METADATA
        if last in (METADATA, METADATA_V2):
            if not isinstance(node, dict) or depth == NODES_DEPTH_MAX:
                raise InvalidInputError(f"The Zarr group {path!r:.200} has no node {child!r:.200}.")
            yield from _nodes(join(path, folder), last, node, depth + 1)


def _described(document: dict[str, Any], name: str, path: str) -> Encoding | None:
    """The encoding of an array; None for a group. name: of the document."""
    if name != METADATA_V2 and document.get("node_type") != "array":
        return None
    return Encoding.of(document, name=path, is_v2=name == METADATA_V2)


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None

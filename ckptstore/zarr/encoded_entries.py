"""The arrays of a checkpoint that were committed through Zarr, as their documents describe them.

Nothing is decoded here: that is left to zarr-python (docs/adr/0016).
"""

from __future__ import annotations

import json
import math
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptstore.documents import canonical
from ckptstore.documents.chunks import DIMENSIONS_MAX
from ckptstore.documents.dtypes import ITEM_BYTES, TextDtype
from ckptstore.documents.zarr_document import METADATA
from ckptstore.documents.zarr_page import EncodedEntry, segments
from ckptstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import Bundle
    from ckptstore.documents.zarr_page import NodePage, Value, ZarrNode
    from ckptstore.store.catalog import Catalog

METADATA_V2 = ".zarray"
_DOCUMENTS = {METADATA, METADATA_V2, ".zattrs"}


class _Part(NamedTuple):
    """A node, or a part of one, with its page and the content of the page's bundle."""

    node: ZarrNode
    page: NodePage
    bundle: bytes


class _Form(NamedTuple):
    """The description of an array in its document."""

    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]


def encoded_entries(manifest: Manifest, catalog: Catalog) -> dict[str, EncodedEntry]:
    """Return every Zarr array of a checkpoint, by the path of its node."""
    documents = _Documents(catalog)
    parts = groupby(_parts(catalog.node_pages(manifest), catalog), key=lambda part: part.node.path)
    entries = (_entry(path, list(group), documents) for path, group in parts)
    return {entry.path: entry for entry in entries if entry is not None}


def encoded_paths(page: NodePage, catalog: Catalog) -> tuple[str, ...]:
    """Return the paths of the Zarr arrays whose documents a page has."""
    documents = _Documents(catalog)
    return tuple(
        part.node.path
        for part in _parts([page], catalog)
        if _entry(part.node.path, [part], documents) is not None
    )


def _parts(pages: Iterable[NodePage], catalog: Catalog) -> Iterator[_Part]:
    for page in pages:
        bundle = b""
        if page.bundle:  # documents, and nothing else
            bundle = catalog.objects.get(page.bundle.digest, bytes_max=page.bundle.size)
        for node in page.nodes:
            yield _Part(node, page, bundle)


class _Documents:
    """Reads the documents of a checkpoint, each once: many arrays may share one."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[Value, int, Bundle | None], _Form | None] = {}

    def form(self, path: str, key: str, value: Value, part: _Part) -> _Form | None:
        """Return the form of an array; None for the document of a group."""
        page = part.page
        place = value, page.segment_bytes, None if value.offset is None else page.bundle
        if place not in self._known:
            data = _read(f"{path}/{key}", value, page, part.bundle, self._catalog)
            self._known[place] = _form(_parsed(data), path, key)
        return self._known[place]


def _form(document: dict[str, Any], path: str, key: str) -> _Form | None:
    if key == METADATA and document.get("node_type") != "array":
        return None
    return _Form(
        _dtype(document),
        _shape(document.get("shape"), path),
        _shape(_chunk_shape(document), path),
    )


def _entry(path: str, parts: Sequence[_Part], reader: _Documents) -> EncodedEntry | None:
    """A node as its document describes it; None for a group."""
    documents = {
        key: (value, part) for part in parts for key, value in part.node.values if key in _DOCUMENTS
    }
    key = next((key for key in (METADATA, METADATA_V2) if key in documents), None)
    if key is None:
        return None
    form = reader.form(path, key, *documents[key])
    if form is None:
        return None
    values = [(value, part.page) for part in parts for _, value in part.node.values]
    return EncodedEntry(
        path=path,
        dtype=form.dtype,
        shape=form.shape,
        chunk_shape=form.chunk_shape,
        digests=tuple(digest for value, _ in values for digest in value.digests),
        sizes=tuple(chain.from_iterable(_sizes(*item) for item in values)),
        chunks=len(values) - len(documents),
    )


def _sizes(value: Value, page: NodePage) -> Iterable[int]:
    if value.offset is not None:
        return (value.size,)
    return (size for _, size in segments(value, page.segment_bytes))


def check_document(key: str, data: bytes, *, size: int) -> None:
    """Raise InvalidInputError for a document that is too large to be parsed.

    Args:
        key: The key of the document.
        data: Its bytes, as far as they have been read.
        size: The number of all its bytes.
    """
    try:
        canonical.check_size(data, name=f"The Zarr document {key!r:.200}")
    except CorruptError as error:
        raise InvalidInputError(f"{error} Consolidated metadata can be left out.") from error
    if size > canonical.DOCUMENT_BYTES_MAX:
        raise InvalidInputError(
            f"The Zarr document {key!r:.200} has {size} bytes; at most "
            f"{canonical.DOCUMENT_BYTES_MAX} are read. Consolidated metadata can be left out."
        )


def _read(key: str, value: Value, page: NodePage, bundle: bytes, catalog: Catalog) -> bytes:
    """The bytes of a document."""
    check_document(key, b"", size=value.size)
    if value.offset is not None:
        data = bundle[value.offset : value.offset + value.size]
    else:
        parts = segments(value, page.segment_bytes)
        data = b"".join(catalog.objects.get(digest, bytes_max=size) for digest, size in parts)
    check_document(key, data, size=value.size)
    return data


def _parsed(data: bytes) -> dict[str, Any]:
    """A document, or {} for one that is not JSON: zarr-python reports what is wrong with it."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _dtype(document: dict[str, Any]) -> str:
    """The name of a dtype in `ITEM_BYTES`; "" for one that no state can hold."""
    name = document.get("data_type", document.get("dtype"))
    if not isinstance(name, str):
        return ""
    if name in ITEM_BYTES:
        return name
    dtype = TextDtype.parse(name)
    return "" if dtype is None else dtype.name


def _chunk_shape(document: dict[str, Any]) -> Any:
    """The chunk shape in a document of either version."""
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict):
        return document.get("chunks", [])
    configuration = grid.get("configuration")
    return configuration.get("chunk_shape", []) if isinstance(configuration, dict) else []


def _shape(shape: Any, path: str) -> tuple[int, ...]:
    is_shape = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or len(shape or ()) > DIMENSIONS_MAX or math.prod(shape or ()) >= 2**60:
        raise CorruptError(f"The document of the Zarr array {path!r:.200} has no valid shape.")
    return tuple(shape or ())

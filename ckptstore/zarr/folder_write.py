"""Zarr v3 folders, which any Zarr tool opens.

A folder holds the whole state: the arrays in groups, uncompressed, and the structure of the state
in an attribute of the root. So `folder_read` returns the same state (docs/adr/0018). A checkpoint
that was committed through Zarr is written key by key, as it was set.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from ckptstore.arrays import json_document
from ckptstore.documents import zarr_document
from ckptstore.documents.chunks import chunk_shape, chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.zarr_document import METADATA
from ckptstore.errors import CkptStoreError, InvalidInputError, shown
from ckptstore.threads import Buffers, gather
from ckptstore.zarr import folder_read

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.chunks import Chunk
    from ckptstore.documents.nodes import Node
    from ckptstore.state.flatten import Flat
    from ckptstore.zarr.contents import ZarrValues

CHUNK_BYTES = 8 << 20
WRITE_THREADS = 4  # each holds a chunk
CONSOLIDATED_MAX = 20_000  # nodes; each takes some 4 KB of memory
NAME_BYTES_MAX = 255  # of a part of a path, the limit of file systems
_ARRAY_DOCUMENTS = (METADATA, ".zarray")
_CHUNK_KEY = re.compile(r"c(?:[/.][0-9]+)*|[0-9]+(?:[/.][0-9]+)*")  # of version 3, or 2


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write a folder with every array and value of a state."""
    del drop_values  # the format holds every value
    path.mkdir()
    with _distinct(map(zarr_document.node_path, flat.arrays)):
        _write(flat, path)


def _write(flat: Flat[ArraySource], path: Path) -> None:
    """Write the arrays, their groups, and last the root."""
    buffers = Buffers()
    nodes: dict[str, Any] = {}  # the first ones, for the root
    groups: set[str] = set()
    for name, source in flat.arrays.items():
        node = zarr_document.node_path(name)
        _check_names(name, node)
        groups.update(zarr_document.above(node))
        document = _write_array(source, path / node, buffers)
        _write_document(path / node, _encoded(document))
        if len(nodes) <= CONSOLIDATED_MAX:
            nodes[node] = document
    for node in groups - {""}:
        nodes[node] = zarr_document.group_document({})
        _write_document(path / node, _encoded(nodes[node]))
    _write_document(path, _root(flat.root, nodes))


def write_values(values: ZarrValues, path: Path) -> None:
    """Write a hierarchy as it was set, each key to a file.

    Raises:
        InvalidInputError: A key cannot be the path of a file, or two keys cannot be those of two.
    """
    path.mkdir()
    keys = values.keys()
    with _distinct(keys):
        gather((partial(_write_value, values, path, key) for key in keys), threads=WRITE_THREADS)


def is_exported(path: Path) -> bool:
    """Return whether a folder is an export: one of `write`, even if it has changed, or all Zarr.

    The files of `write_values` are those that were committed, so nothing marks them as an export.
    They are documents and chunks, and one file of another kind keeps a folder from being replaced.
    """
    try:
        keys = set(folder_read.keys(path))
        if METADATA in keys and folder_read.described(folder_read.document(path / METADATA)):
            return True
        return all(_is_zarr_key(key, keys) for key in keys)
    except (CkptStoreError, OSError):
        return False


def _is_zarr_key(key: str, keys: Container[str]) -> bool:
    """Return whether a key is that of a document, or of a chunk of one of the nodes."""
    parts = key.split("/")
    return parts[-1] in zarr_document.DOCUMENTS or any(
        _CHUNK_KEY.fullmatch("/".join(parts[depth:]))
        and any("/".join([*parts[:depth], name]) in keys for name in _ARRAY_DOCUMENTS)
        for depth in range(len(parts))
    )


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return what `folder_read.read` returns, and no metadata."""
    return folder_read.read(path), {}


def _write_value(values: ZarrValues, path: Path, key: str) -> None:
    """Write the value of a key."""
    if any(
        not part.strip(".") or len(os.fsencode(part)) > NAME_BYTES_MAX for part in key.split("/")
    ):
        raise InvalidInputError(
            f"The key {key!r:.200} of the Zarr hierarchy cannot be the path of a file. Read it "
            "with ckptstore.zarr.CheckpointStore."
        )
    file = path / key
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as out:
        for piece in values.pieces(key):
            out.write(piece)


@contextmanager
def _distinct(names: Iterable[str]) -> Iterator[None]:
    """Turn the error of a name that is taken, in a new folder, into one that says by which."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        folded: dict[str, str] = {}
        paths = [name for name in names if name]
        for path in (*paths, *(group for name in paths for group in zarr_document.above(name))):
            other = folded.setdefault(normalize("NFC", path).casefold(), path)
            if other != path:
                raise InvalidInputError(
                    f"{shown(other)} and {shown(path)} are one name in this file system, which "
                    "does not distinguish upper and lower case. Write to another disk, or a .pt "
                    "file, or choose other arrays (include)."
                ) from error
        below = {group for path in paths for group in zarr_document.above(path)}
        key = next((path for path in paths if path in below), None)
        if key is None:
            raise
        raise InvalidInputError(
            f"The Zarr hierarchy has the key {shown(key)} and another one below it, which is "
            "impossible for files. Read it with ckptstore.zarr.CheckpointStore."
        ) from error


def _check_names(name: str, node: str) -> None:
    """Refuse an array whose name is too long for a folder."""
    if any(len(os.fsencode(part)) > NAME_BYTES_MAX for part in node.split("/")):
        raise InvalidInputError(
            f"The array {shown(name)} needs a folder whose name has more than {NAME_BYTES_MAX} "
            "bytes, which file systems do not have. Choose other arrays (include), or write a .pt "
            "file."
        )


def _write_array(source: ArraySource, folder: Path, buffers: Buffers) -> dict[str, Any]:
    """Write the chunks of an array, and return its document."""
    item = ITEM_BYTES[source.dtype]
    shape = chunk_shape(source.shape, item_bytes=item, chunk_bytes=CHUNK_BYTES)
    size = zarr_document.padded_bytes(source.dtype, shape)
    keys = zarr_document.chunk_keys(source.dtype, source.shape, shape)
    folder.mkdir(parents=True, exist_ok=True)

    def put(key: str, chunk: Chunk) -> None:
        file = folder / key
        file.parent.mkdir(parents=True, exist_ok=True)
        data = source.chunk(chunk, buffers.of)
        with file.open("xb") as out:
            out.write(data)
            out.write(bytes(size - len(data)))

    grid = chunks(source.shape, shape, item_bytes=item)
    gather(
        (partial(put, key, chunk) for key, chunk in zip(keys, grid, strict=True)),
        threads=WRITE_THREADS,
    )
    return zarr_document.array_document(
        dtype=source.dtype, shape=source.shape, chunk_shape=shape, name=folder.name
    )


def _root(node: Node, nodes: Mapping[str, Any]) -> bytes:
    """The root's document, with those of all other nodes if they can be read at once."""
    attributes = folder_read.description(node)
    if len(nodes) <= CONSOLIDATED_MAX:
        data = _encoded(zarr_document.group_document(attributes, dict(sorted(nodes.items()))))
        with suppress(ValueError):
            json_document.check(data)
            return data
    return _encoded(zarr_document.group_document(attributes))


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False).encode("ascii")


def _write_document(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with folder.joinpath(METADATA).open("xb") as out:
        out.write(data)

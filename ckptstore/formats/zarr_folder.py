"""A Zarr v3 folder that any Zarr tool opens; and any Zarr folder, in.

What is written holds everything: the arrays in groups, uncompressed, and the structure of the state in an attribute of the root.
So it is read as the same state again. Another folder, or one that somebody changed since, is committed as it is, file by file.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore import codecs
from ckptstore.errors import CkptStoreError, InvalidInputError, shown
from ckptstore.format import canonical, structure, zarr_document
from ckptstore.format.chunks import chunk_shape, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.structure import array_path, tag_of
from ckptstore.formats import json_document
from ckptstore.formats.file_array import OpenFile
from ckptstore.formats.zarr_array import FolderArray
from ckptstore.lazy import ZarrFiles, ZarrValues
from ckptstore.parallel import Buffers, gather
from ckptstore.state import leaves, unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ckptstore.arrays import ArraySource
    from ckptstore.format.chunks import Chunk
    from ckptstore.format.structure import Node
    from ckptstore.state import Flat

CHUNK_BYTES = 8 << 20
WRITE_THREADS = 4  # each holds a chunk
CONSOLIDATED_MAX = 20_000  # nodes; each takes some 4 KB of memory
MISSING_BYTES_MAX = 1 << 30  # of chunks that are not there, whatever their array claims to have
FILES_MAX = 4_000_000
DEPTH_MAX = 200
NAME_BYTES_MAX = 255  # of a part of a path, as file systems have it
KINDS = frozenset({"tensor", "ndarray"})
METADATA, ATTRIBUTE, VERSION = "zarr.json", "ckptstore", 1
_ROOTS = frozenset({METADATA, ".zgroup", ".zarray"})
_CHUNK_FILE = re.compile(r"(.+)/(c(?:/[0-9]+)*)")


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write a folder with every array and value of a state."""
    del drop_values  # nothing has to be
    path.mkdir()
    buffers = Buffers()
    nodes: dict[str, Any] = {}  # the first ones, for the root
    groups: set[str] = set()
    for name, source in flat.arrays.items():
        node = zarr_document.node_path(name)
        _check_names(name, node)
        groups.update(_above(node))
        document = _write_array(source, path / node, buffers)
        _write_document(path / node, _encoded(document))
        if len(nodes) <= CONSOLIDATED_MAX:
            nodes[node] = document
    for node in groups - {""}:
        nodes[node] = zarr_document.group_document({})
        _write_document(path / node, _encoded(nodes[node]))
    _write_document(path, _root(flat.root, nodes))


def write_values(values: ZarrValues, path: Path) -> None:
    """Write a hierarchy as it was set, each key a file. InvalidInputError for keys that can be no file's path."""
    path.mkdir()
    for key in values.keys():  # noqa: SIM118 - no mapping
        if any(
            not part.strip(".") or len(os.fsencode(part)) > NAME_BYTES_MAX
            for part in key.split("/")
        ):
            raise InvalidInputError(
                f"The key {key!r:.200} of the Zarr hierarchy cannot be the path of a file. Read it with "
                "ckptstore.zarr.CheckpointStore."
            )
        file = path / key
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as out:
                for piece in values.pieces(key):
                    out.write(piece)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidInputError(
                f"The Zarr hierarchy has the key {key!r:.200} and another below it, which files cannot. Read it with "
                "ckptstore.zarr.CheckpointStore."
            ) from error


def is_exported(path: Path) -> bool:
    """True for a folder that `write` has written, whatever happened to it since."""
    try:
        return _structure_of(_document(path / METADATA)) is not None
    except (CkptStoreError, OSError):
        return False


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The state of a folder that `write` has written; any other hierarchy as its files."""
    found = list(keys(path))
    root = _document(path / METADATA) if METADATA in found else {}
    told = _structure_of(root)
    del root
    if told is not None:
        state = _state(told, path, found)
        if state is not None:
            return state[0], {}
    return ZarrFiles(path, tuple(found)), {}


def keys(path: Path) -> Iterator[str]:
    """The key of every file of a Zarr folder, in order; InvalidInputError for anything but files and folders."""
    if not any(path.joinpath(name).is_file() for name in _ROOTS):
        raise InvalidInputError(f"{path} is not a Zarr folder: it has no zarr.json.")
    for number, key in enumerate(_walk(path, "", 0)):
        if number >= FILES_MAX:
            raise InvalidInputError(f"{path} holds more than {FILES_MAX} files.")
        yield key


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    if depth > DEPTH_MAX:
        raise InvalidInputError(f"{folder} lies more than {DEPTH_MAX} folders deep.")
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        key = f"{prefix}{entry.name}"
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise InvalidInputError(
                f"{entry.path} is neither a regular file nor a folder. Copy what it stands for to its place."
            )
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{key}/", depth + 1)
        else:
            yield key


def _check_names(name: str, node: str) -> None:
    """Refuse an array that no folder can be named for."""
    if any(len(os.fsencode(part)) > NAME_BYTES_MAX for part in node.split("/")):
        raise InvalidInputError(
            f"The array {shown(name)} would lie in a folder whose name has more than {NAME_BYTES_MAX} bytes, which file "
            "systems do not have. Choose other arrays (--include), or write a .pt file."
        )


def _write_array(source: ArraySource, folder: Path, buffers: Buffers) -> dict[str, Any]:
    """Write the chunks of an array: its document."""
    item = ITEM_BYTES[source.dtype]
    shape = chunk_shape(source.shape, item_bytes=item, chunk_bytes=CHUNK_BYTES)
    size = zarr_document.padded_bytes(source.dtype, source.shape, shape)
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


def _root(told: Node, nodes: Mapping[str, Any]) -> bytes:
    """The root's document, with those of all other nodes unless they are too many to be read at once."""
    attributes = {ATTRIBUTE: {"version": VERSION, "structure": told}}
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


def _above(node: str) -> Iterator[str]:
    """The paths of the groups that a node lies in."""
    while node:
        node = node.rpartition("/")[0]
        yield node


def _structure_of(document: Mapping[str, Any]) -> Node | None:
    """What the root of a folder that we wrote says of the state; [structure], or None."""
    attributes = document.get("attributes")
    told = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    is_ours = isinstance(told, dict) and told.get("version") == VERSION and "structure" in told
    return told if is_ours else None


def _state(told: Mapping[str, Any], path: Path, files: Sequence[str]) -> tuple[Any] | None:
    """The state of a folder whose arrays are those that its structure names, as we wrote them; else None."""
    name = f"The structure in {path / METADATA}"
    try:
        data = canonical.encode({"structure": told["structure"]}, name=name)
        root = structure.decode(data, name=name)
        named = {found: node for _, node in leaves(root) if (found := array_path(node))}
        opened: dict[str, FolderArray] = {}  # by its node
        for key in files:
            node, _, last = key.rpartition("/")
            document = _document(path / key) if last == METADATA and node else {}
            if document.get("node_type") != "array":
                continue
            told_as = named.get(zarr_document.path_of_node(node))
            kind = "" if told_as is None else tag_of(told_as)
            array = FolderArray.of(document, path / node, kind) if kind in KINDS else None
            if array is None:
                return None
            opened[node] = array
        by_path = {zarr_document.path_of_node(node): array for node, array in opened.items()}
        if by_path.keys() != named.keys():
            return None
        if _missing_bytes(opened, path, files) > MISSING_BYTES_MAX:
            return None
        return (unflatten(root, array=lambda found, _: by_path[found], decode=codecs.decode),)
    except InvalidInputError:
        raise
    except (CkptStoreError, KeyError) as error:
        raise InvalidInputError(f"{path} is not what ckptstore has written: {error}") from error


def _missing_bytes(opened: Mapping[str, FolderArray], path: Path, files: Sequence[str]) -> int:
    """The bytes of all chunks that are not there; InvalidInputError for one of another length than its array's."""
    missing = sum(array.chunk_count * array.chunk_bytes for array in opened.values())
    for key in files:
        match = _CHUNK_FILE.fullmatch(key)
        array = opened.get(match[1]) if match else None
        if array is not None and match is not None and array.has_chunk(match[2]):
            file = path / key
            array.check_size(file, file.lstat().st_size)
            missing -= array.chunk_bytes
    return missing


def _document(file: Path) -> dict[str, Any]:
    """The document of a node; InvalidInputError when it is none, or more than anybody wants to parse."""
    try:
        document = json_document.parse(json_document.read(OpenFile(file, follow=False)))
    except CkptStoreError:
        raise
    except ValueError as error:
        raise InvalidInputError(f"{file} is not a Zarr document to read: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{file} is not a JSON object.")
    return document

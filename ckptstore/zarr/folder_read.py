"""Reading a Zarr folder: the state in one of `folder_write`, with later changes, or its files.

An array whose document and chunks are as `folder_write` writes them is one of the state. Everything
else is committed through Zarr as it is: new arrays and groups, attributes, codecs, missing chunks.
What was a tensor in the state stays one (docs/adr/0018).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import codecs, json_document
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.file import OpenFile
from ckptstore.documents import canonical, structure, zarr_document
from ckptstore.documents.nodes import ZARR, ArrayNode
from ckptstore.documents.zarr_document import METADATA, NODE_DOCUMENTS, V2_KINDS
from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.state.flatten import Flat, flatten, unflatten
from ckptstore.state.tree import arrays as arrays_of
from ckptstore.state.tree import relabel
from ckptstore.zarr.encoding import Encoding, UnknownCodecError
from ckptstore.zarr.folder_array import FolderArray
from ckptstore.zarr.graft import graft
from ckptstore.zarr.hierarchy import ZarrFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.nodes import Node

FILES_MAX = 4_000_000
DEPTH_MAX = 200
ATTRIBUTE, VERSION = "ckptstore", 1
_KINDS = frozenset({"tensor", "ndarray"})
_CHUNK_FILE = re.compile(r"(.+)/(c(?:/[0-9]+)*)")
_PLAIN = zarr_document.group_document({})  # of a group without attributes


def read(path: Path) -> Any:
    """Return the state of a folder of `folder_write`; of any other or changed one, `ZarrFiles`.

    Raises:
        InvalidInputError: It is not a Zarr hierarchy of regular files, or it is damaged.
    """
    files = list(keys(path))
    root = document(path / METADATA) if METADATA in files else {}
    attribute = described(root)
    if attribute is None:
        _check_nodes(path, files)
        return ZarrFiles(path, tuple(files))
    name = f"The structure in {path / METADATA}"
    try:
        data = canonical.encode({"structure": attribute["structure"]}, name=name)
        return _state(structure.decode(data, name=name), _without_description(root), path, files)
    except InvalidInputError:
        raise
    except CkptStoreError as error:
        raise InvalidInputError(f"{path} is not as ckptstore writes it: {error}") from error


def keys(path: Path) -> Iterator[str]:
    """Yield the key of every file of a Zarr folder, in order.

    Raises:
        InvalidInputError: It holds anything but regular files and folders, or too many.
    """
    if not any(path.joinpath(name).is_file() for name in NODE_DOCUMENTS):
        raise InvalidInputError(f"{path} is not a Zarr folder: it has no zarr.json.")
    for number, key in enumerate(_walk(path, "", 0)):
        if number >= FILES_MAX:
            raise InvalidInputError(f"{path} holds more than {FILES_MAX} files.")
        yield key


def document(file: Path) -> dict[str, Any]:
    """Return the document of a node; InvalidInputError if it is not one, or too large."""
    try:
        value = json_document.parse(json_document.read(OpenFile(file, follow=False)))
    except CkptStoreError:
        raise
    except ValueError as error:
        raise InvalidInputError(f"{file} is not a Zarr document to read: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{file} is not a JSON object.")
    return value


def described(root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the description of a state in the document of a root, or None if it has none."""
    attributes = root.get("attributes")
    value = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    if root.get("node_type") != "group" or not isinstance(value, dict):
        return None
    return value if value.get("version") == VERSION and "structure" in value else None


def description(node: Node) -> dict[str, Any]:
    """Return the attributes of a root that describe a state."""
    return {ATTRIBUTE: {"version": VERSION, "structure": structure.to_json(node)}}


def _without_description(root: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a root without the description of the state and consolidated metadata."""
    attributes = {key: value for key, value in root["attributes"].items() if key != ATTRIBUTE}
    others = {key: value for key, value in root.items() if key != "consolidated_metadata"}
    return {**others, "attributes": attributes}


def _state(root: Node, rest: dict[str, Any], path: Path, files: Sequence[str]) -> Any:
    """The state of a structure, and the other files of the folder.

    rest: the document of the root without the description of the state.
    """
    kinds = {node.path: node.kind for node in arrays_of(root)}
    nodes = _nodes(kinds, path, files)
    others = tuple(key for key in files if key != METADATA and not nodes.own(key))
    _check_nodes(path, (METADATA, *others))
    by_path = {zarr_document.path_of_node(node): array for node, array in nodes.ours.items()}
    lost = [name for name, kind in kinds.items() if kind in _KINDS and name not in by_path]
    root = graft(
        root,
        kept=by_path.keys(),
        converted={name: zarr_document.node_path(name) for name in lost},
        arrays=nodes.theirs,
        groups=(),
    )
    state = unflatten(
        root,
        array=lambda name, tag: _InHierarchy(tag, name) if tag in ZARR else by_path[name],
        decode=codecs.decode,
    )
    if not others and rest == _PLAIN:
        return state
    documents = {} if rest == _PLAIN else {METADATA: json.dumps(rest).encode("ascii")}
    return ZarrFiles(path, others, documents, _flat(state))


@dataclass(frozen=True, slots=True)
class _InHierarchy:
    """Stands in a state for an array of the hierarchy: its kind in the structure, and its path."""

    kind: str
    node: str
    identity: object = None


def _flat(state: object) -> Flat[ArraySource]:
    """The flat form of a state, without the arrays of the hierarchy, which its structure names."""

    def describe(value: object) -> Any:
        return value if isinstance(value, _InHierarchy) else arrays.describe(value)

    flat: Flat[Any] = flatten(state, describe=describe, encode=codecs.encode)
    others = {name: leaf for name, leaf in flat.arrays.items() if isinstance(leaf, _InHierarchy)}
    root = relabel(
        flat.root,
        lambda node: ArrayNode(node.kind, others[node.path].node) if node.path in others else node,
    )
    own = {name: leaf for name, leaf in flat.arrays.items() if name not in others}
    return Flat(root=root, arrays=own, tied=flat.tied)


@dataclass(slots=True)
class _Nodes:
    """The nodes of a folder by path.

    ours: arrays of the state. theirs: other arrays. plain: groups without attributes.
    """

    ours: dict[str, FolderArray] = field(default_factory=dict)
    theirs: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)

    def chunk(self, key: str) -> tuple[str, FolderArray] | None:
        """Return the array of the state of which a file is a chunk, with its path."""
        match = _CHUNK_FILE.fullmatch(key)
        array = self.ours.get(match[1]) if match else None
        if match is None or array is None or not array.has_chunk(match[2]):
            return None
        return match[1], array

    def own(self, key: str) -> bool:
        """Return whether a file is part of the state."""
        node, _, last = key.rpartition("/")
        is_document = last == METADATA and (node in self.ours or node in self.plain)
        return is_document or self.chunk(key) is not None


def _nodes(kinds: Mapping[str, str], path: Path, files: Sequence[str]) -> _Nodes:
    """Look at every node; InvalidInputError for a chunk of the wrong length."""
    nodes = _Nodes()
    for key in files:
        node, _, last = key.rpartition("/")
        if last == METADATA and node:
            _look(nodes, node, path, kinds.get(zarr_document.path_of_node(node), ""))
        elif last == ".zarray":
            nodes.theirs.add(node)
    there: Counter[str] = Counter()
    for key in files:
        if chunk := nodes.chunk(key):
            node, array = chunk
            array.check_size(path / key, (path / key).lstat().st_size)
            there[node] += 1
    # Only a Zarr reader should decide which chunks are zeros because they are missing.
    missing = {node for node, array in nodes.ours.items() if there[node] < array.chunk_count}
    nodes.theirs |= missing
    nodes.ours = {node: array for node, array in nodes.ours.items() if node not in missing}
    nodes.plain &= {group for node in nodes.ours for group in zarr_document.above(node)}
    return nodes


def _look(nodes: _Nodes, node: str, path: Path, kind: str) -> None:
    """Look at one node. kind: of the array that the state has there."""
    fields = document(path / node / METADATA)
    if fields == _PLAIN:
        nodes.plain.add(node)
    if fields.get("node_type") != "array":
        return
    array = FolderArray.of(fields, path / node, kind) if kind in _KINDS else None
    has_path = zarr_document.node_path(zarr_document.path_of_node(node)) == node
    if array is not None and has_path:
        nodes.ours[node] = array
    else:
        nodes.theirs.add(node)


def _check_nodes(path: Path, files: Iterable[str]) -> None:
    """Refuse documents of no array or group, such as one that was cut off, and hostile ones."""
    for key in files:
        folder, _, name = key.rpartition("/")
        if name not in NODE_DOCUMENTS:
            continue
        fields = document(path / key)
        if not _is_node(fields, name):
            raise InvalidInputError(f"{path / key} is not the document of a Zarr array or group.")
        if V2_KINDS.get(name, fields.get("node_type")) == "array":
            with suppress(UnknownCodecError):  # stored as it is, and not decoded
                Encoding.of(fields, name=folder, is_v2=name in V2_KINDS)


def _is_node(fields: Mapping[str, Any], name: str) -> bool:
    kind = V2_KINDS.get(name, fields.get("node_type"))
    shape = fields.get("shape") if kind == "array" else []
    return (
        fields.get("zarr_format") == (2 if name in V2_KINDS else 3)
        and kind in ("array", "group")
        and isinstance(shape, list)
        and all(type(length) is int and length >= 0 for length in shape)
    )


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    if depth > DEPTH_MAX:
        raise InvalidInputError(f"{folder} is more than {DEPTH_MAX} folders deep.")
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        key = f"{prefix}{entry.name}"
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise InvalidInputError(
                f"{entry.path} is neither a regular file nor a folder. Replace it with a copy of "
                "what it stands for."
            )
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{key}/", depth + 1)
        else:
            yield key

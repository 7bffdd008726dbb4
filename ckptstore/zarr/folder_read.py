"""A Zarr folder, in: the state in one that we have written, and what another program did to it since; any other as its files.

An array whose document and chunks are as we write them is one of the state. Whatever else there is comes in through Zarr as it
lies there: new arrays and groups, attributes, codecs, missing chunks. What was a tensor in the state stays one.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import codecs, json_document
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.file import OpenFile
from ckptstore.documents import canonical, structure, zarr_document
from ckptstore.documents.nodes import ZARR, ArrayNode
from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.state.flatten import Flat, flatten, unflatten
from ckptstore.state.tree import arrays as arrays_of
from ckptstore.state.tree import relabel
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
METADATA, ATTRIBUTE, VERSION = "zarr.json", "ckptstore", 1
_KINDS = frozenset({"tensor", "ndarray"})
_CHUNK_FILE = re.compile(r"(.+)/(c(?:/[0-9]+)*)")
_VERSIONS = {METADATA: 3, ".zgroup": 2, ".zarray": 2}  # by the name of a node's document
_PLAIN = zarr_document.group_document({})  # of a group that says nothing but that it is there


def read(path: Path) -> Any:
    """The state of a folder that we have written; any other, and one that was changed, as `ZarrFiles`."""
    found = list(keys(path))
    root = document(path / METADATA) if METADATA in found else {}
    said = told(root)
    if said is None:
        _check_nodes(path, found)
        return ZarrFiles(path, tuple(found))
    name = f"The structure in {path / METADATA}"
    try:
        data = canonical.encode({"structure": said["structure"]}, name=name)
        return _state(structure.decode(data, name=name), _untold(root), path, found)
    except InvalidInputError:
        raise
    except CkptStoreError as error:
        raise InvalidInputError(f"{path} is not what ckptstore has written: {error}") from error


def keys(path: Path) -> Iterator[str]:
    """The key of every file of a Zarr folder, in order; InvalidInputError for anything but files and folders."""
    if not any(path.joinpath(name).is_file() for name in _VERSIONS):
        raise InvalidInputError(f"{path} is not a Zarr folder: it has no zarr.json.")
    for number, key in enumerate(_walk(path, "", 0)):
        if number >= FILES_MAX:
            raise InvalidInputError(f"{path} holds more than {FILES_MAX} files.")
        yield key


def document(file: Path) -> dict[str, Any]:
    """The document of a node; InvalidInputError when it is none, or more than anybody wants to parse."""
    try:
        found = json_document.parse(json_document.read(OpenFile(file, follow=False)))
    except CkptStoreError:
        raise
    except ValueError as error:
        raise InvalidInputError(f"{file} is not a Zarr document to read: {error}.") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{file} is not a JSON object.")
    return found


def told(root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the document of a root that we wrote says of the state; None for another's."""
    attributes = root.get("attributes")
    found = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    if root.get("node_type") != "group" or not isinstance(found, dict):
        return None
    return found if found.get("version") == VERSION and "structure" in found else None


def telling(node: Node) -> dict[str, Any]:
    """The attributes of a root that tell the structure of a state."""
    return {ATTRIBUTE: {"version": VERSION, "structure": structure.to_json(node)}}


def _untold(root: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a root without what is there for others: the structure, and all other documents."""
    attributes = {key: value for key, value in root["attributes"].items() if key != ATTRIBUTE}
    kept = {key: value for key, value in root.items() if key != "consolidated_metadata"}
    return {**kept, "attributes": attributes}


def _state(root: Node, rest: dict[str, Any], path: Path, files: Sequence[str]) -> Any:
    """The state that a structure tells, with whatever else lies in the folder. rest: the document of the root."""
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
    """Stands in a state for an array of the hierarchy. kind: its tag in the structure. node: its path."""

    kind: str
    node: str
    identity: object = None


def _flat(state: object) -> Flat[ArraySource]:
    """The state taken apart, without the arrays of the hierarchy, which its structure names."""

    def describe(value: object) -> Any:
        return value if isinstance(value, _InHierarchy) else arrays.describe(value)

    flat: Flat[Any] = flatten(state, describe=describe, encode=codecs.encode)
    others = {name: leaf for name, leaf in flat.arrays.items() if isinstance(leaf, _InHierarchy)}
    root = relabel(
        flat.root,
        lambda node: ArrayNode(node.kind, others[node.path].node) if node.path in others else node,
    )
    kept = {name: leaf for name, leaf in flat.arrays.items() if name not in others}
    return Flat(root=root, arrays=kept, tied=flat.tied)


@dataclass(slots=True)
class _Nodes:
    """The nodes of a folder by path. ours: arrays of the state. theirs: other arrays. plain: groups that say nothing."""

    ours: dict[str, FolderArray] = field(default_factory=dict)
    theirs: set[str] = field(default_factory=set)
    plain: set[str] = field(default_factory=set)

    def chunk(self, key: str) -> tuple[str, FolderArray] | None:
        """The array of the state that a file is a chunk of, with its path."""
        match = _CHUNK_FILE.fullmatch(key)
        array = self.ours.get(match[1]) if match else None
        if match is None or array is None or not array.has_chunk(match[2]):
            return None
        return match[1], array

    def own(self, key: str) -> bool:
        """True for a file that is what the state makes of it."""
        node, _, last = key.rpartition("/")
        is_document = last == METADATA and (node in self.ours or node in self.plain)
        return is_document or self.chunk(key) is not None


def _nodes(kinds: Mapping[str, str], path: Path, files: Sequence[str]) -> _Nodes:
    """Look at every node. InvalidInputError for a chunk of another length than the document of its array makes it."""
    nodes = _Nodes()
    for key in files:
        node, _, last = key.rpartition("/")
        if last == METADATA and node:
            _look(nodes, node, path, kinds.get(zarr_document.path_of_node(node), ""))
        elif last == ".zarray":
            nodes.theirs.add(node)
    there: Counter[str] = Counter()
    for key in files:
        if found := nodes.chunk(key):
            node, array = found
            array.check_size(path / key, (path / key).lstat().st_size)
            there[node] += 1
    # Which chunks are zeros because they are missing only a Zarr reader should say.
    missing = {node for node, array in nodes.ours.items() if there[node] < array.chunk_count}
    nodes.theirs |= missing
    nodes.ours = {node: array for node, array in nodes.ours.items() if node not in missing}
    nodes.plain &= {group for node in nodes.ours for group in zarr_document.above(node)}
    return nodes


def _look(nodes: _Nodes, node: str, path: Path, kind: str) -> None:
    """Look at one node. kind: of the array that the state has there."""
    found = document(path / node / METADATA)
    if found == _PLAIN:
        nodes.plain.add(node)
    if found.get("node_type") != "array":
        return
    array = FolderArray.of(found, path / node, kind) if kind in _KINDS else None
    is_told = zarr_document.node_path(zarr_document.path_of_node(node)) == node
    if array is not None and is_told:
        nodes.ours[node] = array
    else:
        nodes.theirs.add(node)


def _check_nodes(path: Path, files: Iterable[str]) -> None:
    """Refuse documents that make no array or group for anybody, as one that was cut off."""
    for key in files:
        name = key.rpartition("/")[2]
        if name in _VERSIONS and not _is_node(document(path / key), name):
            raise InvalidInputError(f"{path / key} is not the document of a Zarr array or group.")


def _is_node(found: Mapping[str, Any], name: str) -> bool:
    kinds = {".zgroup": "group", ".zarray": "array"}
    kind = kinds.get(name, found.get("node_type"))
    shape = found.get("shape") if kind == "array" else []
    return (
        found.get("zarr_format") == _VERSIONS[name]
        and kind in kinds.values()
        and isinstance(shape, list)
        and all(type(length) is int and length >= 0 for length in shape)
    )


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

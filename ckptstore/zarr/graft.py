"""Graft: the structure of a state when some of its arrays are gone, and arrays from Zarr have come.

An array that was written to through Zarr stays where it was in the state. A new one comes into the dicts that its node's path
names; where these lead into something that is no dict, it lies in the outermost dict, under its whole path. No array that stays
ever makes room for it.
"""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING

from ckptstore.documents.structure import DEPTH_MAX, ZARR, array_path, tag_of
from ckptstore.documents.zarr_document import segment_of
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.tree import NOTHING, ROOT, leaves, node_segments, unkey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ckptstore.documents.structure import Node


_ZARR_OF = {kind: tag for tag, kind in ZARR.items()}


def graft(
    root: Node,
    *,
    kept: Collection[str],
    converted: Mapping[str, str],
    arrays: Iterable[str],
    groups: Iterable[str],
    gone: Iterable[str] = (),
) -> Node:
    """The structure with the arrays of `kept`, those of `converted` as Zarr arrays, and more.

    converted: the path of the node of each array that became a Zarr array. arrays, groups: paths of all nodes that came in
    through Zarr. gone: those of nodes that did so earlier and are no more; what such a group held besides arrays stays.
    """
    listed = set(arrays)
    walk = _Graft(kept, converted, listed)
    made = walk.node(root)
    new = listed - walk.placed
    if "" in new:
        return {"zarr": ROOT}
    if made is NOTHING:
        made = {"dict": []}
    if new and not _is_dict(made):
        made = {"dict": [] if made is None else [[ROOT, made]]}
    if not _is_dict(made):
        return made
    hidden = _below_arrays(listed)
    insert = _Insert(made)
    for path, names in _by_group(gone):
        insert.remove(path, names)
    for path in sorted(path for path in new if path and path not in hidden):
        insert.array(path)
    for path in sorted(path for path in groups if path):
        insert.group(path)
    return made


class _Graft:
    """The walk of one structure."""

    def __init__(
        self, kept: Collection[str], converted: Mapping[str, str], arrays: Collection[str]
    ) -> None:
        self.kept, self.converted, self.arrays = kept, converted, arrays
        self.first: dict[str, str] = {}
        self.placed: set[str] = set()  # paths of nodes whose arrays stayed where they were

    def node(self, node: Node) -> Node:
        """What becomes of a node; NOTHING when it is gone."""
        tag = tag_of(node) if isinstance(node, dict) else ""
        if isinstance(node, list):
            return self.items(node)
        if tag == "tuple":
            items = self.items(node[tag])
            return NOTHING if items is NOTHING else {tag: items}
        if tag in ("dict", "ordered_dict"):
            return self.pairs(node, tag)
        if tag == "type":
            return self.typed(node)
        return self.array(node, tag) if array_path(node) is not None else node

    def items(self, items: list[Node]) -> Node:
        """A list: None stands for what is gone, so that places keep their meaning."""
        kept = [self.node(item) for item in items]
        if items and all(item is NOTHING for item in kept):
            return NOTHING
        return [None if item is NOTHING else item for item in kept]

    def pairs(self, node: Node, tag: str) -> Node:
        """A dict; it goes with the last of its values."""
        walked = [[key, self.node(item)] for key, item in node[tag]]
        kept = [pair for pair in walked if pair[1] is not NOTHING]
        if node[tag] and not kept:
            return NOTHING
        made = {**node, tag: kept}
        if "metadata" in node:
            metadata = self.node(node["metadata"])
            made["metadata"] = None if metadata is NOTHING else metadata
        return made

    def typed(self, node: Node) -> Node:
        """What a codec made; it needs all its arrays."""
        if not all(self.stays(leaf) for _, leaf in leaves(node["value"])):
            return NOTHING
        return {**node, "value": self.node(node["value"])}

    def stays(self, node: Node) -> bool:
        """False for an array that is gone."""
        path = array_path(node)
        if path is None or (path in self.kept and tag_of(node) not in ZARR):
            return True
        return (path if tag_of(node) in ZARR else self.converted.get(path)) in self.arrays

    def array(self, node: Node, tag: str) -> Node:
        """An array; its tie is to the first of its names that is left."""
        path = node[tag]
        if tag in ZARR or path in self.converted:
            path = path if tag in ZARR else self.converted[path]
            if path not in self.arrays:
                return NOTHING
            self.placed.add(path)
            return {tag if tag in ZARR else _ZARR_OF[tag]: path}
        if path not in self.kept:
            return NOTHING
        first = self.first.setdefault(node.get("tied", path), path)
        return {tag: path} if first == path else {tag: path, "tied": first}


class _Insert:
    """Puts nodes into the dicts of a structure."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.known: dict[int, _Dict] = {}

    def array(self, path: str) -> None:
        """Put an array where its path says; plain values that are in its place go, other arrays stay."""
        names = _names(path)
        place = self.inside(names[:-1])
        self.put(*((self.root, path) if place is None else (place, names[-1])), path)

    def put(self, place: Node, name: str, path: str) -> None:
        """Put an array under a name, or one like it where another array has that."""
        found = self.dict(place)
        pair = found.pair(name)
        if pair is None or any(array_path(leaf) is not None for _, leaf in leaves(pair[1])):
            found.add(name, {"zarr": path})
        else:
            pair[1] = {"zarr": path}

    def group(self, path: str) -> None:
        """Have a dict where a group's path says, unless something else is there."""
        self.inside(_names(path))

    def remove(self, path: str, names: Collection[str]) -> None:
        """Take away the dicts that groups in this one have left, unless something is in them."""
        node = self.root
        for name in _names(path) if path else ():
            pair = self.dict(node).pair(name)
            if pair is None or not _is_dict(pair[1]):
                return
            node = pair[1]
        pairs = map(self.dict(node).pair, names)
        left = {id(pair) for pair in pairs if pair and _is_dict(pair[1]) and not _pairs(pair[1])}
        _pairs(node)[:] = [pair for pair in _pairs(node) if id(pair) not in left]
        del self.known[id(node)]

    def inside(self, names: Iterable[str]) -> Node | None:
        """The dict that a path leads to, new where it led to nothing; None where it leads to what is no dict."""
        node = self.root
        for name in names:
            found = self.dict(node)
            pair = found.pair(name) or found.add(name, {"dict": []})
            node = pair[1]
            if not _is_dict(node):
                return None
        return node

    def dict(self, node: Node) -> _Dict:
        """What is known of a dict."""
        if id(node) not in self.known:
            self.known[id(node)] = _Dict(node)
        return self.known[id(node)]


class _Dict:
    """The pairs of a dict node, by path segment and by key."""

    def __init__(self, node: Node) -> None:
        self.node = node  # which keeps its id its own
        self.pairs = _pairs(node)
        self.by_segment = dict(zip(node_segments(self.pairs), self.pairs, strict=True))
        self.by_key = {unkey(pair[0]): pair for pair in self.pairs}

    def pair(self, name: str) -> list[Node] | None:
        """What the name of a node stands for: a path segment, or else a key, as a name may be no escaped one."""
        return self.by_segment.get(segment_of(name)) or self.by_key.get(name)

    def add(self, name: str, node: Node) -> list[Node]:
        """A new pair under a name that is not taken, else with a number behind it."""
        tries = chain([name], (f"{name}_{number}" for number in count(2)))
        key = next(key for key in tries if self.pair(key) is None)
        pair = [key, node]
        self.pairs.append(pair)
        self.by_key[key] = pair
        return pair


def _names(path: str) -> list[str]:
    names = path.split("/")
    if len(names) > DEPTH_MAX - 2:
        raise InvalidInputError(
            f"{shown(path)} lies in more than {DEPTH_MAX - 2} groups; a checkpoint has no place for that."
        )
    return names


def _is_dict(node: Node) -> bool:
    return isinstance(node, dict) and tag_of(node) in ("dict", "ordered_dict")


def _pairs(node: Node) -> list[list[Node]]:
    """The keys and values of a dict."""
    found: list[list[Node]] = node[tag_of(node)]
    return found


def _by_group(paths: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The names of nodes by the path of the group that they lie in, groups inside of others first."""
    found: dict[str, list[str]] = {}
    for path in filter(None, paths):
        group, _, name = path.rpartition("/")
        found.setdefault(group, []).append(name)
    return sorted(found.items(), reverse=True)


def _below_arrays(arrays: Collection[str]) -> set[str]:
    """The arrays below arrays, which no Zarr reader finds."""
    return {
        path
        for path in arrays
        if path
        and (
            "" in arrays
            or any(path[:end] in arrays for end, char in enumerate(path) if char == "/")
        )
    }

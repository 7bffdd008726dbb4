"""Graft: the structure of a state when some of its arrays are gone, and arrays from Zarr have come.

An array that was written to through Zarr stays where it was in the state. A new one comes into the dicts that its node's path
names; where these lead into something that is no dict, it lies in the outermost dict, under its whole path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown
from ckptstore.format.structure import DEPTH_MAX, ZARR, array_path, tag_of
from ckptstore.state import NOTHING, ROOT, leaves, node_segments

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ckptstore.format.structure import Node


_ZARR_OF = {kind: tag for tag, kind in ZARR.items()}


def graft(
    root: Node,
    *,
    kept: Collection[str],
    converted: Mapping[str, str],
    arrays: Iterable[str],
    groups: Iterable[str],
) -> Node:
    """The structure with the arrays of `kept`, those of `converted` as Zarr arrays, and more.

    converted: the path of the node of each array that became a Zarr array. arrays, groups: paths of all nodes that came in
    through Zarr.
    """
    listed = set(arrays)
    walk = _Graft(kept, converted, listed)
    made = walk.node(root)
    new = listed - walk.placed
    if new == {""}:
        return {"zarr": ROOT}
    if not _is_dict(made):
        made = {"dict": [] if made is NOTHING or made is None else [[ROOT, made]]}
    hidden = _below_arrays(listed)
    insert = _Insert(made)
    for path in sorted(path for path in groups if path and path not in hidden):
        insert.node(path, {"dict": []})
    for path in sorted(path for path in new if path and path not in hidden):
        insert.node(path, {"zarr": path})
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
        listed = [path for _, leaf in leaves(node["value"]) if (path := array_path(leaf))]
        if any(path not in self.kept and path not in self.converted for path in listed):
            return NOTHING
        return {**node, "value": self.node(node["value"])}

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
        self.known: dict[
            int, dict[str, list[Node]]
        ] = {}  # by id of a list of pairs: these, by segment

    def node(self, path: str, node: Node) -> None:
        """Put a node where its path says; a dict that is there already stays."""
        segments = path.split("/")
        if len(segments) > DEPTH_MAX - 2:
            raise InvalidInputError(
                f"{shown(path)} lies in more than {DEPTH_MAX - 2} groups; a checkpoint has no place for that."
            )
        pairs = self.root[tag_of(self.root)]
        for segment in segments[:-1]:
            pair = self.pair(pairs, segment, {"dict": []})
            if not _is_dict(pair[1]):
                pairs, segments = self.root[tag_of(self.root)], [path]
                break
            pairs = pair[1][tag_of(pair[1])]
        pair = self.pair(pairs, segments[-1], node)
        if "zarr" in node or not _is_dict(pair[1]):
            pair[1] = node

    def pair(self, pairs: list[list[Node]], segment: str, new: Node) -> list[Node]:
        """The pair of a dict whose key has this path segment; a new one when there is none."""
        if id(pairs) not in self.known:
            self.known[id(pairs)] = dict(zip(node_segments(pairs), pairs, strict=True))
        known = self.known[id(pairs)]
        if segment not in known:
            known[segment] = [segment, new]
            pairs.append(known[segment])
        return known[segment]


def _is_dict(node: Node) -> bool:
    return isinstance(node, dict) and tag_of(node) in ("dict", "ordered_dict")


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

"""Graft: the structure of a state after arrays of it are gone and others came in through Zarr.

An array that was written to through Zarr stays where it was in the state. A new one comes into the
dicts that the path of its node names; where these lead into something that is no dict, it is in the
outermost dict, under its whole path. No array that stays is ever moved to make room. See ADR 0016.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from ckptstore.documents.nodes import ZARR, ArrayNode, CodecNode, DictNode, fold, with_parts
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.documents.zarr_document import segment_of
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.paths import ROOT, key_segments
from ckptstore.state.tree import NOTHING, Nothing, remaining, retie
from ckptstore.state.tree import arrays as arrays_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ckptstore.documents.nodes import Inner, Key, Leaf, Node

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
    """The structure after a change through Zarr.

    Args:
        root: The structure before it.
        kept: The paths of the arrays of the state that stay as they are.
        converted: The path of the Zarr node of each array that became a Zarr array.
        arrays: The paths of all nodes that are arrays.
        groups: The paths of all nodes that are groups.
        gone: The paths of nodes there were before. What such a group holds besides arrays stays.

    Raises:
        InvalidInputError: A node is in more groups than a structure has levels.
    """
    listed = set(arrays)
    stays = _stays(root, kept, converted, listed)
    new = listed - {node.path for node in arrays_of(stays) if node.is_zarr}
    if "" in new:
        return ArrayNode("zarr", ROOT)
    if new and not isinstance(stays, DictNode):
        stays = DictNode({} if stays is None else {ROOT: stays})
    if not isinstance(stays, DictNode):
        return stays
    draft = _Draft(stays)
    for group, names in _by_group(gone):
        draft.remove(group, names)
    hidden = _below_arrays(listed)
    for path in sorted(path for path in new if path and path not in hidden):
        draft.add_array(path)
    for path in filter(None, sorted(groups)):
        draft.inside(_names(path))
    return draft.node()


def _stays(
    root: Node, kept: Collection[str], converted: Mapping[str, str], listed: Collection[str]
) -> Node:
    """The rest of a structure, with its arrays as they are now; an empty dict if none is left."""

    def array(node: ArrayNode) -> ArrayNode | Nothing:
        """Under which kind and path an array is there from now on; NOTHING for one that is gone."""
        if node.is_zarr or node.path in converted:
            path = node.path if node.is_zarr else converted[node.path]
            return (
                ArrayNode(_ZARR_OF.get(node.kind, node.kind), path) if path in listed else NOTHING
            )
        return node if node.path in kept else NOTHING

    def inner(node: Inner, left: list[Node | Nothing]) -> Node | Nothing:
        if isinstance(node, CodecNode):  # which needs all of its arrays
            is_whole = all(array(inside) is not NOTHING for inside in arrays_of(node))
            value = [part for part in left if part is not NOTHING]
            return with_parts(node, value) if is_whole else NOTHING
        if not isinstance(node, DictNode):
            return remaining(node, left)
        metadata = None if node.metadata is None or left[-1] is NOTHING else left[-1]
        return remaining(replace(node, metadata=metadata), left[: len(node.items)])

    def leaf(node: Leaf) -> Node | Nothing:
        return array(node) if isinstance(node, ArrayNode) else node

    left = fold(root, leaf, inner)
    return DictNode({}) if left is NOTHING else retie(left)


class _Draft:
    """A dict that is being changed, and those inside it that are."""

    def __init__(self, origin: DictNode) -> None:
        self.origin = origin
        self.items: dict[Key, Any] = dict(origin.items)  # nodes and drafts
        self.segments: dict[str, Key] = {}
        self.index()

    def index(self) -> None:
        """Note the keys by their path segments."""
        self.segments = dict(zip(key_segments(self.items), self.items, strict=True))

    def node(self) -> DictNode:
        """The dict as it is now."""
        items = {
            key: item.node() if isinstance(item, _Draft) else item
            for key, item in self.items.items()
        }
        return replace(self.origin, items=items)

    def key(self, name: str) -> Key | None:
        """The key that the name of a node stands for; None when there is no such key.

        The name is a path segment, or else a key, as a name need not be escaped.
        """
        key = self.segments.get(segment_of(name))
        return name if key is None and name in self.items else key

    def new_key(self, name: str) -> str:
        """A key like a name that no other name stands for: with a number behind it if need be."""
        tries = chain([name], (f"{name}_{number}" for number in count(2)))
        return next(key for key in tries if self.key(key) is None)

    def dict(self, key: Key) -> _Draft | None:
        """The dict under a key; None for anything else."""
        if isinstance(self.items[key], DictNode):
            self.items[key] = _Draft(self.items[key])
        item = self.items[key]
        return item if isinstance(item, _Draft) else None

    def inside(self, names: Iterable[str]) -> _Draft | None:
        """The dict that a path leads to, made as needed; None where it leads into anything else."""
        here: _Draft | None = self
        for name in names:
            if here is None:
                return None
            key = here.key(name)
            if key is None:
                key = here.new_key(name)
                here.items[key] = DictNode({})
            here = here.dict(key)
        return here

    def add_array(self, path: str) -> None:
        """Put an array where its path leads; plain values in its place go, other arrays stay."""
        *above, name = _names(path)
        parent = self.inside(above)
        if parent is None:
            parent, name = self, path
        key = parent.key(name)
        if key is None or _has_arrays(parent.items[key]):
            key = parent.new_key(name)
        parent.items[key] = ArrayNode("zarr", path)

    def remove(self, path: str, names: Iterable[str]) -> None:
        """Remove the empty dicts that groups in the one at a path have left."""
        here = self
        for name in _names(path) if path else ():
            key = here.key(name)
            inner = None if key is None else here.dict(key)
            if inner is None:
                return
            here = inner
        keys = {key for name in names if (key := here.key(name)) is not None}
        for key in keys:
            inner = here.dict(key)
            if inner is not None and not inner.items:
                del here.items[key]
        here.index()


def _has_arrays(item: Node | _Draft) -> bool:
    return any(arrays_of(item.node() if isinstance(item, _Draft) else item))


def _names(path: str) -> list[str]:
    names = path.split("/")
    if len(names) > DEPTH_MAX - 2:
        raise InvalidInputError(
            f"{shown(path)} is in more than {DEPTH_MAX - 2} groups, which no checkpoint can hold."
        )
    return names


def _by_group(paths: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The names of nodes by the path of the group they are in, inner groups first."""
    groups: dict[str, list[str]] = {}
    for path in filter(None, paths):
        group, _, name = path.rpartition("/")
        groups.setdefault(group, []).append(name)
    return sorted(groups.items(), reverse=True)


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

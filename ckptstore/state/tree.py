"""Tree: what is asked and made of the structure of a state.

Every function here takes a tree of `ckptstore.documents.nodes` and returns a new one, or a part of
it; none changes a tree. See section 12 of docs/reference/format.md and ADR 0019.
"""

from __future__ import annotations

import re
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import (
    ArrayNode,
    CodecNode,
    DictNode,
    InnerNode,
    ListNode,
    TupleNode,
    fold,
    parts,
    with_parts,
)
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.flatten import unflatten
from ckptstore.state.paths import children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ckptstore.documents.nodes import Key, Leaf, Node
    from ckptstore.state.selection import Selection


class Nothing(Enum):
    """The type of `NOTHING`."""

    NOTHING = "nothing"


class Placeholder(Enum):
    """The type of `ARRAY`."""

    ARRAY = "array"

    def __repr__(self) -> str:
        return f"<{self.value}>"


ARRAY: Final = Placeholder.ARRAY  # in place of an array in the plain form of a codec's value
NOTHING: Final = Nothing.NOTHING  # what is left of a node of which nothing is kept
_ENDS = re.compile(r"_?(state_?dict|states?)$")


def arrays(root: Node) -> Iterator[ArrayNode]:
    """Every array of a structure, in the state's own order."""
    if isinstance(root, ArrayNode):
        yield root
    elif isinstance(root, InnerNode):
        for node in parts(root):
            yield from arrays(node)


def leaves(root: Node, path: str = "") -> Iterator[tuple[str, Leaf | CodecNode]]:
    """Every array and plain value of a structure with its path, in the state's own order.

    A codec's value counts as a plain value, followed by the arrays inside it. Of an OrderedDict's
    metadata only the arrays are listed.

    Args:
        root: The structure, or a part of it.
        path: The path of the root.
    """
    if isinstance(root, ArrayNode):
        yield root.path, root
    elif not isinstance(root, InnerNode):
        yield path, root
    elif isinstance(root, CodecNode):
        yield path, root
        yield from ((node.path, node) for node in arrays(root))
    else:
        for where, node in children(root, path):
            yield from leaves(node, where)
        if isinstance(root, DictNode):
            yield from ((node.path, node) for node in arrays(root.metadata))


def keys(root: Node) -> list[Key]:
    """The keys of the outermost dict, in order; none for any other structure."""
    return list(root.items) if isinstance(root, DictNode) else []


def part(root: Node, name: str) -> Node:
    """Return the value of a key of the outermost dict.

    Raises:
        InvalidInputError: It has no such key; the message lists the keys there are.
    """
    if not isinstance(name, str) or name not in keys(root):
        there = ", ".join(map(shown, keys(root)[:12])) or "no names"
        alike = [key for key in keys(root) if isinstance(name, str) and stem(key) == stem(name)]
        hint = f" Pass part={alike[0]!r}." if len(alike) == 1 else ""
        raise InvalidInputError(f"The checkpoint has no part {shown(name)}. It has {there}.{hint}")
    assert isinstance(root, DictNode), "nothing else has keys"
    return root.items[name]


def stem(key: object) -> str | None:
    """A key without the ends that people add to the name of an object: "model_state_dict"."""
    return _ENDS.sub("", key.lower()) if isinstance(key, str) else None


def path_of(name: str) -> str:
    """The path of what the outermost dict has under a key."""
    return escape_key(name)


def plain(node: Node, *, decode: Callable[[str, object], object]) -> object:
    """A plain value; of a codec's value that holds arrays, its plain form with ARRAY for each."""
    has_arrays = any(arrays(node))
    return unflatten(
        node,
        array=lambda path, kind: ARRAY,
        decode=(lambda name, value: value) if has_arrays else decode,
    )


def select(root: Node, selection: Selection, *, name: str) -> Node:
    """The structure of what a selection chooses.

    A dict loses the keys of what is not chosen. A list or tuple keeps its length, with None in
    place of what is not chosen, so that positions keep their meaning. A codec's value is kept
    whole, when its path or that of anything in it is chosen, or not at all.

    Args:
        root: The whole structure.
        selection: Which paths are chosen.
        name: What the structure is of, for errors.

    Raises:
        InvalidInputError: Nothing is chosen.
    """
    if selection.is_everything:
        return root
    kept = prune(root, selection)
    if kept is NOTHING:
        raise InvalidInputError(f"Nothing in {name} matches {selection}.")
    return kept


def prune(root: Node, chosen: Callable[[str], bool]) -> Node | Nothing:
    """The structure of the paths that a function chooses; NOTHING when it chooses none."""

    def left(node: Node, path: str) -> Node | Nothing:
        items = [left(item, where) for where, item in children(node, path)]
        if isinstance(node, ListNode | TupleNode | DictNode) and items:
            return remaining(node, items)
        paths = [path]  # a codec's value is also chosen by the path of any value or array in it
        if isinstance(node, ArrayNode):
            paths = [node.path]
        elif isinstance(node, CodecNode):
            paths += [where for where, _ in leaves(node.value, path)]
        return node if any(map(chosen, paths)) else NOTHING

    kept = left(root, "")
    return kept if kept is NOTHING else retie(kept)


def remaining(
    node: ListNode | TupleNode | DictNode, items: Sequence[Node | Nothing]
) -> Node | Nothing:
    """A container with what is left of each of its items; NOTHING when nothing is left of any."""
    if items and all(item is NOTHING for item in items):
        return NOTHING
    if isinstance(node, DictNode):
        pairs = zip(node.items, items, strict=True)
        return replace(node, items={key: item for key, item in pairs if item is not NOTHING})
    return type(node)(tuple(None if item is NOTHING else item for item in items))


def relabel(root: Node, change: Callable[[ArrayNode], Node]) -> Node:
    """The structure with another node in place of each array."""
    return fold(
        root, lambda node: change(node) if isinstance(node, ArrayNode) else node, with_parts
    )


def retie(root: Node) -> Node:
    """The structure with every array tied to the first one left that is the same array."""
    firsts: dict[str, str] = {}

    def tied(node: ArrayNode) -> ArrayNode:
        if node.is_zarr:  # an array of its own, even where its path is the one others were tied to
            return ArrayNode(node.kind, node.path)
        first = firsts.setdefault(node.first, node.path)
        return ArrayNode(node.kind, node.path, None if first == node.path else first)

    return relabel(root, tied)

"""Nodes: what the tree of a structure is made of, and the fold over it.

A structure is the state itself with a typed node in place of each array, container and value of a
registered type; a plain value is its own node. How nodes are written is the job of
`ckptstore.documents.structure`, and how a state becomes a tree that of `ckptstore.state.flatten`.
See section 12 of docs/reference/format.md and ADR 0019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ZARR: Final = {"zarr": "ndarray", "zarr_tensor": "tensor"}  # what a checkout returns for each

Key: TypeAlias = str | int
Plain: TypeAlias = bool | int | float | complex | str | bytes | bytearray | None
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _node(cls: type[T]) -> type[T]:
    """Make a dataclass that only the type checker freezes: at run time that costs 0.5 us a node."""
    return dataclass(slots=True)(cls)


@_node
class ArrayNode:
    """An array, by its path.

    Attributes:
        kind: Its tag: "tensor", "ndarray", "zarr" or "zarr_tensor".
        path: Its own path; for an array that came in through Zarr, the path of its Zarr node.
        tied: Of a second name of the same array, the path of the first.
    """

    kind: str
    path: str
    tied: str | None = None

    @property
    def first(self) -> str:
        """The path of the first name of the same array, which may be its own."""
        return self.path if self.tied is None else self.tied

    @property
    def is_zarr(self) -> bool:
        """True for an array that came in through Zarr."""
        return self.kind in ZARR


class InnerNode:
    """The base of the nodes that have parts, which are those of `Inner` alone."""

    __slots__ = ()


@_node
class ListNode(InnerNode):
    """A list."""

    items: tuple[Node, ...]


@_node
class TupleNode(InnerNode):
    """A tuple."""

    items: tuple[Node, ...]


@_node
class DictNode(InnerNode):
    """A dict in its own order, or an OrderedDict.

    Attributes:
        items: The nodes by key.
        is_ordered: True for an OrderedDict.
        metadata: Of an OrderedDict, the `_metadata` attribute that torch gives to the state dict
            of a module; None where there is none.
    """

    items: Mapping[Key, Node]
    is_ordered: bool = False
    metadata: Node = None


@_node
class CodecNode(InnerNode):
    """A value of a type that has a codec.

    Attributes:
        type: The name of the type.
        value: The plain form that the codec encoded the value to.
    """

    type: str
    value: Node


Leaf: TypeAlias = ArrayNode | Plain
Inner: TypeAlias = ListNode | TupleNode | DictNode | CodecNode
Node: TypeAlias = Leaf | Inner


def fold(root: Node, leaf: Callable[[Leaf], T], inner: Callable[[Inner, list[T]], T]) -> T:
    """Compute a value from a tree, from its leaves up.

    Args:
        root: The tree.
        leaf: Called with each array and plain value, in the state's own order.
        inner: Called with each other node and the results for its `parts`.

    Returns:
        The result for the root.
    """

    def result(node: Node) -> T:
        if not isinstance(node, InnerNode):
            return leaf(node)
        below = [
            result(part) if isinstance(part, InnerNode) else leaf(part) for part in parts(node)
        ]
        return inner(node, below)

    return result(root)


def parts(node: Inner) -> Iterable[Node]:
    """The nodes directly inside another: of a dict the values, then the metadata if it has any."""
    if isinstance(node, DictNode):
        values = node.items.values()
        return values if node.metadata is None else (*values, node.metadata)
    return (node.value,) if isinstance(node, CodecNode) else node.items


def with_parts(node: Inner, parts: Sequence[Node]) -> Inner:
    """The same node with other parts in the place of its own."""
    if isinstance(node, CodecNode):
        return CodecNode(node.type, *parts)
    if not isinstance(node, DictNode):
        return type(node)(tuple(parts))
    items = dict(zip(node.items, parts, strict=False))
    return replace(node, items=items, metadata=None if node.metadata is None else parts[-1])

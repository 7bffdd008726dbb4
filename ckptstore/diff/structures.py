"""Structures: the plain values that differ between two structures, and what is arranged otherwise.

Pure. Arrays are compared by their pages, in `ckptstore.diff.compare`; here only their kinds and
ties count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptstore.diff.changes import ValueChange
from ckptstore.documents.nodes import ArrayNode, DictNode, ListNode, TupleNode
from ckptstore.documents.structure import is_same
from ckptstore.state.paths import children, key_segments
from ckptstore.state.tree import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.diff.changes import ValueKind
    from ckptstore.documents.nodes import Inner, Node
    from ckptstore.state.selection import Selection

    Decode = Callable[[str, object], object]


def structure_changes(
    before: Node, after: Node, selection: Selection, decode: Decode
) -> tuple[tuple[ValueChange, ...], tuple[str, ...]]:
    """The plain values that differ, and the paths of what is arranged otherwise, in path order.

    Args:
        before: The structure of the first checkpoint.
        after: The structure of the second checkpoint.
        selection: Which paths are compared.
        decode: Returns the value of a type, by the type's name, from its plain form.
    """
    one, other = _outline(before, selection), _outline(after, selection)
    return tuple(_value_changes(one.values, other.values, decode)), _rearranged(one, other)


@dataclass(frozen=True, slots=True)
class _Outline:
    """The comparable parts of a structure, by path: of arrays their kinds and ties."""

    values: dict[str, Node] = field(default_factory=dict)
    containers: dict[str, ListNode | TupleNode | DictNode] = field(default_factory=dict)
    arrays: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def _outline(root: Node, selection: Selection) -> _Outline:
    outline = _Outline()

    def add(node: Node, path: str) -> None:
        if isinstance(node, ArrayNode):
            if selection(node.path):
                outline.arrays[node.path] = node.kind, node.tied
            return
        inside = list(children(node, path))
        if selection(path):
            if isinstance(node, ListNode | TupleNode | DictNode):
                outline.containers[path] = node
            if not inside:
                outline.values[path] = node
        for where, item in inside:
            add(item, where)

    add(root, "")
    return outline


def _value_changes(
    before: Mapping[str, Node], after: Mapping[str, Node], decode: Decode
) -> Iterator[ValueChange]:
    def value(side: Mapping[str, Node], path: str) -> object:
        return plain(side[path], decode=decode) if path in side else None

    for path in sorted(before.keys() | after.keys()):
        if path in before and path in after and is_same(before[path], after[path]):
            continue
        kind: ValueKind = "changed" if path in before else "added"
        kind = kind if path in after else "removed"
        yield ValueChange(
            path=path, kind=kind, before=value(before, path), after=value(after, path)
        )


def _rearranged(before: _Outline, after: _Outline) -> tuple[str, ...]:
    """The containers and arrays on both sides that differ in themselves."""
    arrays = {path for path, form in before.arrays.items() if after.arrays.get(path, form) != form}
    containers = {
        path
        for path, container in before.containers.items()
        if path in after.containers
        and path not in before.values.keys() & after.values.keys()
        and not _is_arranged_alike(container, after.containers[path])
    }
    return tuple(sorted(arrays | containers))


def _is_arranged_alike(one: Inner, other: Inner) -> bool:
    """True for containers of one type and metadata that have their common keys in one order."""
    if not isinstance(one, DictNode) or not isinstance(other, DictNode):
        return type(one) is type(other)
    keys, other_keys = (
        dict(zip(key_segments(node.items), node.items, strict=True)) for node in (one, other)
    )
    common = [item for item in keys.items() if item[0] in other_keys]
    return (
        one.is_ordered == other.is_ordered
        and is_same(one.metadata, other.metadata)
        and common == [item for item in other_keys.items() if item[0] in keys]
    )

"""Paths: where each node of a structure is, written as the keys that lead to it, joined by "/".

See section 12.2 of docs/reference/format.md and ADR 0006.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore.documents.names import escape_first, escape_key
from ckptstore.documents.nodes import DictNode, ListNode, TupleNode
from ckptstore.errors import UnsupportedValueError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ckptstore.documents.nodes import Node

ROOT = "array"  # the path of a state that is one array
# The parts in which the state of a training may have its weights: of a manager, and of Lightning.
WEIGHTS = ("model", "state_dict")


def join(path: str, segment: str) -> str:
    """The path of what is under a segment."""
    return f"{path}/{segment}" if path else segment


def weights_part(keys: Collection[object]) -> str | None:
    """The key of the outermost dict under which the weights are; None if they are not in a part."""
    return next((part for part in WEIGHTS if part in keys), None)


def key_segments(keys: Iterable[object], path: str = "") -> list[str]:
    """The path segments of a dict's keys, each different from the others.

    Args:
        keys: The keys, of any type.
        path: Of the dict, for errors.

    Raises:
        UnsupportedValueError: A key is neither a string nor an integer of 64 bits.
    """
    listed: list[Any] = list(keys)
    if set(map(type, listed)) == {str} and all(listed):
        text = "".join(listed)
        if text.isprintable() and "/" not in text and "%" not in text:
            return listed  # no key has anything to escape, which is much faster to find out at once
    integers = {str(_checked(key, path)) for key in listed if type(key) is not str}
    segments = []
    for key in listed:
        segment = escape_key(key) if type(key) is str else str(key)
        is_taken = type(key) is str and segment in integers
        segments.append(escape_first(segment) if is_taken else segment)
    return segments


def _checked(key: object, path: str) -> int:
    if type(key) is not int:
        raise UnsupportedValueError(
            f"{shown_path(path)} has the key {shown(key)} of type {shown_type(key)}; "
            "keys are strings or integers."
        )
    if not -(2**63) <= key < 2**64:
        raise UnsupportedValueError(f"{shown_path(path)} has an integer key of more than 64 bits.")
    return key


def children(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """The items of a list or tuple and the values of a dict, each with its path."""
    if isinstance(node, DictNode):
        segments: Iterable[str] = key_segments(node.items)
        items: Iterable[Node] = node.items.values()
    elif isinstance(node, ListNode | TupleNode):
        segments, items = map(str, range(len(node.items))), node.items
    else:
        return iter(())
    return zip(map(partial(join, path), segments), items, strict=True)


def shown_path(path: str) -> str:
    """A path as messages show it."""
    return repr(path if len(path) <= 200 else path[:200] + "…") if path else "The state itself"


def shown_type(value: object) -> str:
    """The name of a value's type as messages show it."""
    kind = type(value)
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"

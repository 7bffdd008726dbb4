"""Placement: where the arrays and values of a checkpoint go in a destination that exists already.

A destination is an nn.Module, or a nest of dicts, lists and tuples that holds tensors, arrays, plain values, modules and
other objects with load_state_dict (optimizers, schedulers, …). Matching comes first and lists every difference; only
then is anything read or changed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.source import (
    copy_chunk,
    describe,
    has_no_memory,
    is_array,
    is_lazy,
    is_module,
    is_ndarray,
)
from ckptstore.documents.chunks import Chunk
from ckptstore.documents.names import escape_key
from ckptstore.documents.structure import ZARR, Node, array_path, tag_of
from ckptstore.errors import CorruptError, Incompatible, shown
from ckptstore.state.tree import join, leaves, node_segments, unkey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ckptstore.documents.page import ArrayEntry


@dataclass(frozen=True, slots=True)
class Handover:
    """A part of the structure, and what takes what is made of it. may_refuse: False for what is only put in its place."""

    node: Node
    assign: Callable[[Any], object]
    may_refuse: bool


@dataclass(slots=True)
class Placement:
    """What a checkout into an existing destination will do.

    targets: existing arrays by the path of what goes into them. loads: parts of the structure that are read as a fresh
    state and handed to a function: plain values, optimizers, what a module computes rather than stores.
    """

    targets: dict[str, Any] = field(default_factory=dict)
    loads: list[Handover] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def incompatible(self) -> Incompatible:
        """Every difference that was found."""
        return Incompatible(
            missing=tuple(self.missing),
            unexpected=tuple(self.unexpected),
            mismatched=tuple(self.mismatched),
        )


def place(
    root: Node, destination: object, entries: Mapping[str, ArrayEntry], *, path: str = ""
) -> Placement:
    """Match the structure of a checkpoint against a destination. path: of the root in the whole, where it is a part."""
    walk = _Place(entries, path)
    walk.node(root, destination, path, None)
    return walk.placement


class _Place:
    """The walk of one destination."""

    def __init__(self, entries: Mapping[str, ArrayEntry], root: str) -> None:
        self.entries, self.root = entries, root
        self.placement = Placement()
        self.first: dict[int, tuple[str, Any]] = {}  # by id: what fills it first, and the array
        self.plain: set[int] = set()  # ids of what was found to hold nothing to fill

    def node(
        self, node: Node, target: Any, path: str, assign: Callable[[Any], object] | None
    ) -> None:
        """Match one node with what stands in its place; `assign` exchanges it, None when that cannot be done."""
        name = path or "the state"
        if is_module(target):
            self.module(node, target, path)
        elif hasattr(target, "load_state_dict") and not isinstance(target, type):
            self.placement.loads.append(Handover(node, target.load_state_dict, may_refuse=True))
        elif array_path(node) or is_array(target):
            self.array(node, target, name)
        elif path != self.root and not _holds_arrays(node) and self.is_plain(target):
            self.value(node, name, assign)
        elif isinstance(target, dict) and _tag(node) in ("dict", "ordered_dict"):
            self.dict(node, target, path)
        elif isinstance(target, (list, tuple)) and (
            isinstance(node, list) or _tag(node) == "tuple"
        ):
            self.items(node, target, path)
        else:
            self.placement.mismatched.append(
                f"{name} (a {_tag(node)} there, a {type(target).__name__} here)"
            )

    def is_plain(self, value: object) -> bool:
        """True when nothing in a destination, which may hold itself, could be filled in place; each part is looked at once."""
        seen: set[int] = set()
        left = [value]
        while left:
            item = left.pop()
            if isinstance(item, (dict, list, tuple)):
                key = id(item)
                if key not in seen and key not in self.plain:
                    seen.add(key)
                    left.extend(item.values() if isinstance(item, dict) else item)
            elif is_array(item) or hasattr(item, "load_state_dict"):
                return False
        self.plain |= seen
        return True

    def value(self, node: Node, name: str, assign: Callable[[Any], object] | None) -> None:
        """Exchange plain values, whole as they stand in the checkpoint."""
        if assign is None:
            self.placement.mismatched.append(
                f"{name} (a plain value inside a tuple, which cannot be exchanged)"
            )
        else:
            self.placement.loads.append(Handover(node, assign, may_refuse=False))

    def dict(self, node: Node, target: dict[Any, Any], path: str) -> None:
        """Match key by key."""
        pairs = {
            unkey(key): (item, join(path, segment))
            for (key, item), segment in zip(
                node[_tag(node)], node_segments(node[_tag(node)]), strict=True
            )
        }
        self.placement.missing += [join(path, _text(key)) for key in target if key not in pairs]
        for key, (item, inner) in pairs.items():
            if key in target:
                self.node(item, target[key], inner, _setter(target, key))
            else:
                self.placement.unexpected += [name for name, _ in leaves(item, inner)] or [inner]

    def items(self, node: Node, target: Any, path: str) -> None:
        """Match position by position."""
        nodes = node if isinstance(node, list) else node["tuple"]
        self.placement.missing += [join(path, str(i)) for i in range(len(nodes), len(target))]
        for position, item in enumerate(nodes):
            inner = join(path, str(position))
            if position >= len(target):
                self.placement.unexpected += [name for name, _ in leaves(item, inner)] or [inner]
            elif isinstance(target, list):
                self.node(item, target[position], inner, _setter(target, position))
            else:
                self.node(item, target[position], inner, None)

    def array(self, node: Node, target: Any, name: str) -> None:
        """Match an array with an array of the same dtype and shape."""
        path = array_path(node)
        is_filled = is_array(target) and not is_lazy(target)
        if path is None or not is_filled:
            there = "an array" if path else "a plain value"
            here = "an array" if is_filled else f"a {type(target).__name__}"
            self.placement.mismatched.append(f"{name} ({there} there, {here} here)")
            return
        entry = self.entries.get(path)
        if entry is None:
            raise CorruptError(
                f"The structure names {path!r:.200}, which no page lists. Run verify."
            )
        first, _ = self.first.setdefault(id(target), (path, target))
        dtype, shape = str(target.dtype).removeprefix("torch."), tuple(target.shape)
        if (entry.dtype, entry.shape) != (dtype, shape):
            self.placement.mismatched.append(
                f"{name} ({entry.dtype} {list(entry.shape)} there, {dtype} {list(shape)} here)"
            )
        elif (reason := _unwritable(target)) is not None:
            self.placement.mismatched.append(f"{name} (the destination {reason})")
        elif self.entries[first].digests != entry.digests:
            self.placement.mismatched.append(
                f"{name} (not the same as {first} there, tied to it here)"
            )
        elif _tag(node) in ZARR:
            self.placement.loads.append(Handover(node, _copier(target), may_refuse=False))
        else:
            self.placement.targets[path] = target

    def module(self, node: Node, module: Any, path: str) -> None:
        """Match a module's own names; what it computes for its state_dict goes through load_state_dict."""
        if _tag(node) not in ("dict", "ordered_dict"):
            self.placement.mismatched.append(
                f"{path or 'the state'} (a {_tag(node)} there, a module's names here)"
            )
            return
        expected = module.state_dict(keep_vars=True)
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        found = set()
        for (key, item), segment in zip(
            node[_tag(node)], node_segments(node[_tag(node)]), strict=True
        ):
            name, inner = str(unkey(key)), join(path, segment)
            found.add(name)
            if name not in expected:
                self.placement.unexpected += [leaf for leaf, _ in leaves(item, inner)] or [inner]
            elif is_array(expected[name]) and not is_lazy(expected[name]):
                before = len(self.placement.mismatched)
                self.array(item, expected[name], inner)
                if id(expected[name]) not in own and len(self.placement.mismatched) == before:
                    self.placement.targets.pop(array_path(item) or "", None)
                    self.placement.loads.append(
                        Handover(item, _loader(module, name), may_refuse=True)
                    )
            else:
                self.placement.loads.append(Handover(item, _loader(module, name), may_refuse=True))
        missing = (escape_key(name) for name in expected if name not in found)
        self.placement.missing += [join(path, name) for name in missing]


def _setter(target: Any, key: Any) -> Callable[[Any], object]:
    def assign(value: Any) -> None:
        target[key] = value

    return assign


def _copier(target: Any) -> Callable[[Any], object]:
    """What copies a whole array of the same dtype and shape into an existing one."""

    def assign(value: Any) -> None:
        source = describe(value)
        assert source is not None
        everything = tuple(slice(0, length) for length in source.shape)
        copy_chunk(target, Chunk(0, source.nbytes, everything), source.whole())

    return assign


def _loader(module: Any, name: str) -> Callable[[Any], object]:
    return lambda value: module.load_state_dict({name: value}, strict=False)


def _tag(node: Node) -> str:
    if isinstance(node, dict):
        return tag_of(node)
    return "list" if isinstance(node, list) else "plain value"


def _holds_arrays(node: Node) -> bool:
    return any(array_path(leaf) for _, leaf in leaves(node))


def _text(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def _unwritable(target: Any) -> str | None:
    """Why an array cannot be written in place; None when it can."""
    if is_ndarray(target):
        return None if target.flags.writeable else "is read-only"
    if target.is_meta:
        return "is on the meta device; use module.to_empty() first"
    if target.layout is not sys.modules["torch"].strided or target.is_quantized:
        return "is sparse or quantized"
    if has_no_memory(target):
        return "has no memory; its storage was freed"
    if any(
        stride == 0 and length > 1
        for stride, length in zip(target.stride(), target.shape, strict=True)
    ):
        return "is an expanded view, whose elements share memory"
    return None

"""Placement: where the arrays and values of a stored state go in an existing destination.

A destination is an nn.Module, a Keras model, or a nested structure of dicts, lists and tuples that
holds tensors, arrays, plain values, models and other objects with load_state_dict (optimizers,
schedulers, ...). Matching comes first and lists every difference; nothing is read or changed here.
See docs/adr/0023 for how checkout and followers carry a placement out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import (
    copy_chunk,
    describe,
    is_array,
    is_module,
    is_uninitialized,
    unwritable,
)
from ckptstore.arrays.keras import ModelState, is_keras
from ckptstore.checkout.opener import unlisted
from ckptstore.documents.chunks import Chunk
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import ArrayNode, CodecNode, DictNode, ListNode, TupleNode
from ckptstore.errors import CheckoutMismatchError, Incompatible, InvalidInputError, shown
from ckptstore.state.paths import children, join
from ckptstore.state.tree import arrays, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.nodes import Key, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A node of the structure, and what takes the state that is built from it.

    owner: the object or module whose load_state_dict takes it; None for a value that is only put in
    its place, which nothing can refuse.
    """

    node: Node
    assign: Callable[[Any], object]
    owner: object = None

    @property
    def may_refuse(self) -> bool:
        """True when a load_state_dict is called."""
        return self.owner is not None

    @property
    def is_own(self) -> bool:
        """True for an object with a state of its own, such as an optimizer."""
        return self.owner is not None and not is_module(self.owner)

    def give(self, value: Any, *, note: str) -> None:
        """Hand the state over. note: for the error of a load_state_dict that refuses it."""
        try:
            self.assign(value)
        except Exception as error:  # a load_state_dict may raise anything
            raise InvalidInputError(
                "A load_state_dict refused what the checkpoint holds for it "
                f"({type(error).__name__}: {error}). {note}"
            ) from error


@dataclass(slots=True, kw_only=True)
class Placement:
    """The plan of filling a destination.

    targets: existing arrays by the path of what goes into them. handovers: nodes that are read as a
    fresh state and handed to a function: plain values, optimizers, what a module computes rather
    than stores. is_whole: what the destination has beyond the stored state counts as missing.
    """

    is_whole: bool = True
    targets: dict[str, Any] = field(default_factory=dict)
    handovers: list[Handover] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def incompatible(self) -> Incompatible:
        """Every difference that was found."""
        return Incompatible(
            missing=tuple(self.missing) if self.is_whole else (),
            unexpected=tuple(self.unexpected),
            mismatched=tuple(self.mismatched),
        )


def place(
    stored: StoredState, destination: object, entries: Mapping[str, Entry] | None = None
) -> Placement:
    """Match a stored state with a destination. entries: those of the stored state, if at hand."""
    walk = _Place(stored, stored.entries() if entries is None else entries)
    walk.node(stored.root, destination, stored.path, None)
    return walk.placement


def misfit_error(misfit: Incompatible, *, hint: str = "") -> CheckoutMismatchError:
    """The error for a destination that does not fit, before anything was read into it."""
    message = f"The checkpoint does not fit: {misfit}. Nothing was changed. {hint}"
    return CheckoutMismatchError(message.rstrip(), misfit)


class _Place:
    """The walk of one destination."""

    def __init__(self, stored: StoredState, entries: Mapping[str, Entry]) -> None:
        self.entries, self.root = entries, stored.path
        self.placement = Placement(is_whole=stored.is_whole)
        self.first: dict[int, tuple[str, Any]] = {}  # by id: what fills it first, and the array
        self.plain: set[int] = set()  # ids of what was found to hold nothing to fill

    def node(
        self, node: Node, target: Any, path: str, assign: Callable[[Any], object] | None
    ) -> None:
        """Match one node with its counterpart. assign: replaces that; None where it cannot be."""
        name = path or "the state"
        if is_keras(target):
            self.keras(node, target, path)
        elif is_module(target):
            self.module(node, target, path)
        elif hasattr(target, "load_state_dict") and not isinstance(target, type):
            self.placement.handovers.append(
                Handover(node=node, assign=target.load_state_dict, owner=target)
            )
        elif isinstance(node, ArrayNode) or is_array(target):
            self.array(node, target, name)
        elif path != self.root and not any(arrays(node)) and self.is_plain(target):
            self.value(node, name, assign)
        elif isinstance(target, dict) and isinstance(node, DictNode):
            self.dict(node, target, path)
        elif isinstance(target, list | tuple) and isinstance(node, ListNode | TupleNode):
            self.items(node, target, path)
        else:
            self.placement.mismatched.append(
                f"{name} (checkpoint: {_kind(node)}, destination: {type(target).__name__})"
            )

    def is_plain(self, value: object) -> bool:
        """True when nothing in a destination, which may hold itself, could be filled in place."""
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
        """Replace plain values by those of the checkpoint."""
        if assign is None:
            self.placement.mismatched.append(
                f"{name} (a plain value inside a tuple, which cannot be exchanged)"
            )
        else:
            self.placement.handovers.append(Handover(node=node, assign=assign))

    def dict(self, node: DictNode, target: dict[Any, Any], path: str) -> None:
        """Match key by key."""
        missing = [join(path, _text(key)) for key in target if key not in node.items]
        self.placement.missing += missing
        for key, inner, item in _items(node, path):
            if key in target:
                self.node(item, target[key], inner, _setter(target, key))
            else:
                self.unexpected(item, inner)

    def items(self, node: ListNode | TupleNode, target: Any, path: str) -> None:
        """Match position by position."""
        missing = range(len(node.items), len(target))
        self.placement.missing += [join(path, str(position)) for position in missing]
        for position, (inner, item) in enumerate(children(node, path)):
            if position >= len(target):
                self.unexpected(item, inner)
            elif isinstance(target, list):
                self.node(item, target[position], inner, _setter(target, position))
            else:
                self.node(item, target[position], inner, None)

    def unexpected(self, node: Node, path: str) -> None:
        """Note everything in a node that the destination has no place for."""
        self.placement.unexpected += [name for name, _ in leaves(node, path)] or [path]

    def array(self, node: Node, target: Any, name: str) -> None:
        """Match an array with an array of the same dtype and shape."""
        is_filled = is_array(target) and not is_uninitialized(target)
        if not isinstance(node, ArrayNode) or not is_filled:
            stored = "array" if isinstance(node, ArrayNode) else "plain value"
            actual = "array" if is_filled else type(target).__name__
            self.placement.mismatched.append(
                f"{name} (checkpoint: {stored}, destination: {actual})"
            )
            return
        path = node.path
        entry = self.entries.get(path)
        if entry is None:
            raise unlisted(path)
        first, _ = self.first.setdefault(id(target), (path, target))
        dtype, shape = str(target.dtype).removeprefix("torch."), tuple(target.shape)
        if (entry.dtype, entry.shape) != (dtype, shape):
            self.placement.mismatched.append(
                f"{name} (checkpoint: {entry.dtype} {list(entry.shape)}, "
                f"destination: {dtype} {list(shape)})"
            )
        elif (reason := unwritable(target)) is not None:
            self.placement.mismatched.append(f"{name} (the destination {reason})")
        elif first != path and self.entries[first].content != entry.content:
            self.placement.mismatched.append(
                f"{name} (tied to {first} in the destination, but not equal to it in the "
                "checkpoint)"
            )
        elif node.is_zarr:
            self.placement.handovers.append(Handover(node=node, assign=_copier(target)))
        else:
            self.placement.targets[path] = target

    def module(self, node: Node, module: Any, path: str) -> None:
        """Match a module's own names; it loads by itself what it computes for its state_dict."""
        if not isinstance(node, DictNode):
            self.refuse_names(node, path)
            return
        expected = module.state_dict(keep_vars=True)
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        names = set()
        for key, inner, item in _items(node, path):
            name = str(key)
            names.add(name)
            if name not in expected:
                self.unexpected(item, inner)
            elif is_array(expected[name]) and not is_uninitialized(expected[name]):
                before = len(self.placement.mismatched)
                self.array(item, expected[name], inner)
                if id(expected[name]) not in own and len(self.placement.mismatched) == before:
                    assert isinstance(item, ArrayNode), "only an array matches an array"
                    self.placement.targets.pop(item.path, None)
                    self.load(item, module, name)
            else:
                self.load(item, module, name)
        missing = (escape_key(name) for name in expected if name not in names)
        self.placement.missing += [join(path, name) for name in missing]

    def load(self, node: Node, module: Any, name: str) -> None:
        """Have a module load what it computes for its state_dict rather than stores."""

        def assign(value: Any) -> None:
            module.load_state_dict({name: value}, strict=False)

        self.placement.handovers.append(Handover(node=node, assign=assign, owner=module))

    def keras(self, node: Node, model: Any, path: str) -> None:
        """Match the variables of a Keras model by the names that checkpoints have for them."""
        if isinstance(node, DictNode):
            self.dict(node, ModelState(model).state_dict(), path)
        else:
            self.refuse_names(node, path)

    def refuse_names(self, node: Node, path: str) -> None:
        """Note that a model was met where the checkpoint has no names."""
        self.placement.mismatched.append(
            f"{path or 'the state'} (checkpoint: {_kind(node)}, destination: module)"
        )


def _setter(target: Any, key: Any) -> Callable[[Any], object]:
    def assign(value: Any) -> None:
        target[key] = value

    return assign


def _copier(target: Any) -> Callable[[Any], object]:
    """Return a function that copies an array of the same dtype and shape into this one."""

    def assign(value: Any) -> None:
        source = describe(value)
        assert source is not None
        copy_chunk(target, Chunk(0, source.nbytes, ()), source.whole())

    return assign


def _items(node: DictNode, path: str) -> Iterator[tuple[Key, str, Node]]:
    """The keys of a dict, each with the path and the node of its value."""
    return ((key, *child) for key, child in zip(node.items, children(node, path), strict=True))


def _kind(node: Node) -> str:
    """The kind of a node, for messages."""
    if isinstance(node, ArrayNode | CodecNode):
        return node.kind if isinstance(node, ArrayNode) else node.type
    return {ListNode: "list", TupleNode: "tuple", DictNode: "dict"}.get(type(node), "plain value")


def _text(key: object) -> str:
    return key if isinstance(key, str) else shown(key)

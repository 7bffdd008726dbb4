"""Flatten: a state taken apart into arrays by path and a structure, and put together again.

Dicts keep their order and the types of their keys, tuples stay tuples, tied arrays stay tied. What
counts as an array, and which other types can be encoded, is decided by functions passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ckptstore.documents.canonical import VALUES_MAX
from ckptstore.documents.names import PATH_LENGTH_MAX
from ckptstore.documents.nodes import ArrayNode, CodecNode, DictNode, ListNode, TupleNode, fold
from ckptstore.documents.structure import DEPTH_MAX, INT_BITS_MAX
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown
from ckptstore.state.classes import NamedValue, text_of
from ckptstore.state.codecs import KEYED, KEYED_ORDERED
from ckptstore.state.paths import ROOT, join, key_segments, shown_path, shown_type

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ckptstore.documents.nodes import Inner, Key, Node
    from ckptstore.documents.nodes import Leaf as LeafNode

MARKS_UNCOUNTED = 50_000  # a state that needs more is counted before the walk goes on


class Leaf(Protocol):
    """The properties of an array that flattening depends on."""

    @property
    def kind(self) -> str:
        """The kind of its node: "tensor" or "ndarray"."""
        ...

    @property
    def identity(self) -> object:
        """Equal for two names of the same memory; None when that means nothing."""
        ...


LeafT = TypeVar("LeafT", bound=Leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat(Generic[LeafT]):
    """A state taken apart.

    Attributes:
        root: Its structure.
        arrays: Its arrays by path, in the state's own order.
        tied: For each path that is another name of the same array, the path that came first.
    """

    root: Node
    arrays: Mapping[str, LeafT]
    tied: Mapping[str, str] = field(default_factory=dict)


def flatten(
    state: object,
    *,
    describe: Callable[[object], LeafT | None],
    encode: Callable[[object], tuple[str, object] | None],
    expand: Callable[[object], object] = lambda value: None,
) -> Flat[LeafT]:
    """Take a state apart.

    Args:
        state: Dicts, OrderedDicts, lists and tuples in any nesting, of arrays and other values.
        describe: Returns what is to be kept of an array, and None for any other value.
        encode: Returns the name of a value's type and its plain form, None when it has no codec.
        expand: Returns the state of a module, an optimizer or another object that has one, which
            is stored in its place; None for any other value.

    Raises:
        UnsupportedValueError: A value has no representation; the message names its path and type.
    """
    walk = _Flatten(state, describe, encode, expand)
    root = walk.node(state, "", 0)
    return Flat(root=root, arrays=walk.arrays, tied=walk.tied)


@dataclass(slots=True)
class _Flatten(Generic[LeafT]):
    """The walk of one state."""

    state: object
    describe: Callable[[object], LeafT | None]
    encode: Callable[[object], tuple[str, object] | None]
    expand: Callable[[object], object]
    arrays: dict[str, LeafT] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    first: dict[object, str] = field(default_factory=dict)  # by identity
    marks: int = 0
    is_counted: bool = False

    def node(self, value: Any, path: str, depth: int) -> Any:
        """The node of one value."""
        if depth > DEPTH_MAX:
            raise UnsupportedValueError(
                f"{shown_path(path)} is more than {DEPTH_MAX} levels deep; "
                "is the state a part of itself?"
            )
        if len(path) > PATH_LENGTH_MAX:
            raise UnsupportedValueError(
                f"The path {shown_path(path)} has more than {PATH_LENGTH_MAX} characters."
            )
        kind = type(value)
        if kind in _CONTAINERS:
            return self.container(value, path, depth)
        if kind not in _PLAIN:
            return self.other(value, path, depth)
        if kind is int and value.bit_length() > INT_BITS_MAX:
            raise UnsupportedValueError(
                f"{shown_path(path)} is an integer of {value.bit_length()} bits; "
                f"at most {INT_BITS_MAX} bits are supported."
            )
        if kind is bytearray:
            return bytearray(value)  # which may change after the walk
        return value

    def container(self, value: Any, path: str, depth: int) -> Node:
        """A dict, list or tuple."""
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            try:
                segments = key_segments(value, path)
            except UnsupportedValueError:
                return self.keyed(value, path, depth)
            if kind is dict:
                return DictNode(self.items(value, segments, path, depth))
            return self.ordered(value, segments, path, depth)
        items = self.sequence(value, path, depth)
        return ListNode(items) if kind is list else TupleNode(items)

    def sequence(self, values: Sequence[Any], path: str, depth: int) -> tuple[Node, ...]:
        """The nodes of the items of a list or tuple."""
        self.spend(max(1, len(values)), path)
        bare = self.bare(len(path) + len(str(len(values))), depth)
        return tuple(
            [
                item if type(item) in bare else self.node(item, join(path, str(number)), depth + 1)
                for number, item in enumerate(values)
            ]
        )

    def items(
        self, values: Mapping[Any, Any], segments: list[str], path: str, depth: int
    ) -> dict[Key, Node]:
        """The keys and nodes of a dict."""
        self.spend(2 + 3 * len(values), path)
        bare = self.bare(len(path) + max(map(len, segments), default=0), depth)
        begin = f"{path}/" if path else ""
        return {
            key: item if type(item) in bare else self.node(item, begin + segment, depth + 1)
            for segment, (key, item) in zip(segments, values.items(), strict=True)
        }

    def bare(self, length: int, depth: int) -> frozenset[type]:
        """The types of values that need no visit, below a container of this depth and path."""
        return _BARE if length < PATH_LENGTH_MAX and depth < DEPTH_MAX else frozenset()

    def spend(self, marks: int, path: str) -> None:
        """Count the brackets and commas the structure will have, and refuse more than it may."""
        self.marks += marks
        if MARKS_UNCOUNTED < self.marks <= VALUES_MAX and not self.is_counted:
            self.is_counted = True
            self.marks = max(self.marks, _marks(self.state, 0, {}))
        if self.marks > VALUES_MAX:
            raise UnsupportedValueError(
                f"{shown_path(path)} or what is around it: the state holds more than a structure "
                f"can, which is about {VALUES_MAX} values. "
                "Put large lists of numbers into an array."
            )

    def keyed(self, value: Any, path: str, depth: int) -> CodecNode:
        """A dict with keys that are not all texts and integers: the keys, and its items by text."""
        refused = next((key for key in value if not _may_be_key(key)), None)
        if refused is not None:
            raise UnsupportedValueError(
                f"{shown_path(path)} has the key {shown(refused)} of type {shown_type(refused)}; "
                "keys are texts, bytes, numbers, booleans, None, members of enumerations and "
                "tuples of these."
            )
        if getattr(value, "_metadata", None) is not None:
            raise UnsupportedValueError(
                f"{shown_path(path)} has _metadata, and keys that are not texts."
            )
        texts: dict[str, Any] = {}
        for key, item in value.items():
            text = key if type(key) is str else text_of(key)
            while text in texts:
                text += "'"
            texts[text] = item
        name = KEYED if type(value) is dict else KEYED_ORDERED
        return CodecNode(name, self.node({"keys": list(value), "items": texts}, path, depth + 1))

    def ordered(self, value: Any, segments: list[str], path: str, depth: int) -> DictNode:
        """An OrderedDict, with the _metadata that torch attaches to the state dict of a module."""
        items = self.items(value, segments, path, depth)
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:
            metadata = self.node(metadata, join(path, "_metadata"), depth + 1)
        return DictNode(items, is_ordered=True, metadata=metadata)

    def other(self, value: object, path: str, depth: int) -> Any:
        """An array, a value whose type has a codec, or an object that has a state."""
        leaf: LeafT | None = None
        try:
            try:
                leaf = self.describe(value)
                encoded = self.encode(value) if leaf is None else None
            except UnsupportedValueError:
                encoded = self.encode(value)  # a subclass of tensors may have a codec
                if encoded is None:
                    raise
        except UnsupportedValueError as error:
            raise UnsupportedValueError(f"{shown_path(path)} {_sentence(error)}") from error
        except InvalidInputError as error:
            raise UnsupportedValueError(f"{shown_path(path)}: {_sentence(error)}") from error
        if leaf is not None:
            return self.array(leaf, path or ROOT)
        if encoded is None:
            state = self.expand(value)
            if state is not None:
                return self.node(state, path, depth + 1)
            raise UnsupportedValueError(
                f"{shown_path(path)} is of type {shown_type(value)}. {_hint(value)}"
            )
        return CodecNode(encoded[0], self.node(encoded[1], path, depth + 1))

    def array(self, leaf: LeafT, path: str) -> ArrayNode:
        """An array, tied to the first one that has the same memory."""
        if path in self.arrays:
            raise UnsupportedValueError(
                f"Two arrays of the state have the path {shown_path(path)}."
            )
        self.arrays[path] = leaf
        identity = leaf.identity
        first = path if identity is None else self.first.setdefault(identity, path)
        if first == path:
            return ArrayNode(leaf.kind, path)
        self.tied[path] = first
        return ArrayNode(leaf.kind, path, first)


def unflatten(
    root: Node, *, array: Callable[[str, str], Any], decode: Callable[[str, object], object]
) -> Any:
    """Put a state together from its structure.

    Args:
        root: The structure.
        array: Returns the array of a path and a kind. It is called once for each array: tied ones
            become the same object.
        decode: Returns the value of a type, by the type's name, from its plain form.
    """
    arrays: dict[str, Any] = {}

    def leaf(node: LeafNode) -> Any:
        if isinstance(node, ArrayNode):
            name = node.first
            if name not in arrays:
                arrays[name] = array(name, node.kind)
            return arrays[name]
        return bytearray(node) if isinstance(node, bytearray) else node

    def inner(node: Inner, parts: list[Any]) -> Any:
        if isinstance(node, DictNode):
            return _dict(node, parts)
        if isinstance(node, CodecNode):
            return decode(node.type, parts[0])
        return parts if isinstance(node, ListNode) else tuple(parts)

    return fold(root, leaf, inner)


def _dict(node: DictNode, parts: list[Any]) -> dict[Key, Any]:
    value = (OrderedDict if node.is_ordered else dict)(zip(node.items, parts, strict=False))
    if node.metadata is not None:
        vars(value)["_metadata"] = parts[-1]
    return value


def _may_be_key(key: object) -> bool:
    """True for a key whose hash and equality are those of its value, wherever it is made."""
    if type(key) is tuple:
        return all(map(_may_be_key, key))
    return type(key) in _KEYS or isinstance(key, Enum | NamedValue)


_KEYS = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS = frozenset({list, tuple, dict, OrderedDict})
_BARE = frozenset({type(None), bool, float, str, complex, bytes})
_PLAIN = _BARE | {int, bytearray}


def _marks(value: Any, depth: int, known: dict[int, int]) -> int:
    """The brackets and commas of a value's structure; a container that recurs is counted once."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return 0
    if depth > DEPTH_MAX or len(value) > VALUES_MAX:
        return VALUES_MAX + 1
    if id(value) not in known:
        is_dict = kind in (dict, OrderedDict)
        inner = value.values() if is_dict else value
        known[id(value)] = VALUES_MAX + 1  # what holds itself has no end
        marks = 2 + 3 * len(value) if is_dict else max(1, len(value))
        known[id(value)] = marks + sum(_marks(item, depth + 1, known) for item in inner)
    return known[id(value)]


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."


def _hint(value: object) -> str:
    if hasattr(type(value), "state_dict"):
        return "Pass its state_dict()."
    if isinstance(value, tuple):
        return "Pass tuple(value), or register_codec for its type."
    if isinstance(value, dict):
        return "Pass dict(value), or register_codec for its type."
    return "Store plain values and arrays, or register_codec for its type."

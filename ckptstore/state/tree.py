"""A state as arrays by path plus a structure, and back. Pure: what is an array is asked of functions passed in.

Dicts keep their order and key types, tuples stay tuples, tied arrays stay tied. Paths join the keys with "/".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ckptstore.documents import structure
from ckptstore.documents.canonical import VALUES_MAX
from ckptstore.documents.names import PATH_LENGTH_MAX, escape_first, escape_key
from ckptstore.documents.structure import Node, array_path, tag_of
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MARKS_UNCOUNTED = 50_000  # a state that needs more is counted before the walk goes on
ROOT = "array"  # the path of a state that is one array
WEIGHTS = "model"  # the part in which the state of a training has its weights


class Leaf(Protocol):
    """What a state needs to know of an array."""

    @property
    def kind(self) -> str:
        """Its tag in a structure: "tensor" or "ndarray"."""
        ...

    @property
    def identity(self) -> object:
        """Equal for two names of the same memory; None when that means nothing."""
        ...


LeafT = TypeVar("LeafT", bound=Leaf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat(Generic[LeafT]):
    """A state taken apart.

    tied: for each path that is another name of the same array, the path that came first.
    """

    root: Node
    arrays: Mapping[str, LeafT]
    tied: Mapping[str, str] = field(default_factory=dict)


def flatten(
    state: object,
    *,
    describe: Callable[[object], LeafT | None],
    encode: Callable[[object], tuple[str, object] | None],
) -> Flat[LeafT]:
    """Take a state apart; a value that cannot be represented is an error that names its path and type."""
    walk = _Flatten(state, describe, encode)
    root = walk.node(state, "", 0)
    return Flat(root=root, arrays=walk.arrays, tied=walk.tied)


class _Flatten(Generic[LeafT]):
    """The walk of one state."""

    def __init__(
        self,
        state: object,
        describe: Callable[[object], LeafT | None],
        encode: Callable[[object], tuple[str, object] | None],
    ) -> None:
        self.state = state
        self.describe, self.encode = describe, encode
        self.arrays: dict[str, LeafT] = {}
        self.tied: dict[str, str] = {}
        self.first: dict[object, str] = {}
        self.marks, self.counted = 0, False

    def node(self, value: Any, path: str, depth: int) -> Node:
        """The structure node of one value."""
        if depth > structure.DEPTH_MAX:
            raise UnsupportedValueError(
                f"{_shown(path)} lies more than {structure.DEPTH_MAX} levels deep; is the state a part of itself?"
            )
        if len(path) > PATH_LENGTH_MAX:
            raise UnsupportedValueError(
                f"The path {_shown(path)} has more than {PATH_LENGTH_MAX} characters."
            )
        kind = type(value)
        if kind in _SCALARS:
            return _scalar(value, kind, path)
        if kind is list:
            return self.items(value, path, depth)
        if kind is tuple:
            return {"tuple": self.items(value, path, depth)}
        if kind is dict:
            return {"dict": self.pairs(value, path, depth)}
        if kind is OrderedDict:
            return self.ordered(value, path, depth)
        return self.other(value, path, depth)

    def items(self, values: Sequence[object], path: str, depth: int) -> list[Node]:
        """The nodes of a list or tuple."""
        self.spend(max(1, len(values)), path)
        return [
            self.node(item, join(path, str(position)), depth + 1)
            for position, item in enumerate(values)
        ]

    def pairs(self, values: Mapping[Any, object], path: str, depth: int) -> list[list[Any]]:
        """The keys and nodes of a dict."""
        self.spend(2 + 3 * len(values), path)
        segments = key_segments(values, path)
        return [
            [_key(key), self.node(item, join(path, segment), depth + 1)]
            for segment, (key, item) in zip(segments, values.items(), strict=True)
        ]

    def spend(self, marks: int, path: str) -> None:
        """Count the brackets and commas that the structure will have, and end a walk that no document can hold."""
        self.marks += marks
        if MARKS_UNCOUNTED < self.marks <= VALUES_MAX and not self.counted:
            self.counted = True
            self.marks = max(self.marks, _marks(self.state, 0, {}))
        if self.marks > VALUES_MAX:
            raise UnsupportedValueError(
                f"{_shown(path)} or what lies around it: the state holds more than a structure can, which is about "
                f"{VALUES_MAX} values. Put large lists of numbers into an array."
            )

    def ordered(self, value: Any, path: str, depth: int) -> Node:
        """An OrderedDict, with the _metadata that torch hangs on a module's state_dict."""
        node = {"ordered_dict": self.pairs(value, path, depth)}
        metadata = getattr(value, "_metadata", None)
        if metadata is not None:
            node["metadata"] = self.node(metadata, join(path, "_metadata"), depth + 1)
        return node

    def other(self, value: object, path: str, depth: int) -> Node:
        """An array, or a value whose type has a codec."""
        try:
            leaf = self.describe(value)
            encoded = self.encode(value) if leaf is None else None
        except UnsupportedValueError as error:
            raise UnsupportedValueError(f"{_shown(path)} {_sentence(error)}") from error
        except InvalidInputError as error:
            raise UnsupportedValueError(f"{_shown(path)}: {_sentence(error)}") from error
        if leaf is not None:
            return self.array(leaf, path or ROOT)
        if encoded is None:
            raise UnsupportedValueError(f"{_shown(path)} is of type {_type(value)}. {_hint(value)}")
        return {"type": encoded[0], "value": self.node(encoded[1], path, depth + 1)}

    def array(self, leaf: LeafT, path: str) -> Node:
        """An array node; a second name of the same memory says whose."""
        if path in self.arrays:
            raise UnsupportedValueError(f"Two arrays of the state have the path {_shown(path)}.")
        self.arrays[path] = leaf
        node = {leaf.kind: path}
        if leaf.identity is not None:
            first = self.first.setdefault(leaf.identity, path)
            if first != path:
                self.tied[path] = node["tied"] = first
        return node


def unflatten(
    root: Node, *, array: Callable[[str, str], Any], decode: Callable[[str, object], object]
) -> Any:
    """Build a state from its structure.

    array: gives the array for a path and kind ("tensor", "ndarray"). It is called once for each array; tied ones
    are the same object.
    """
    made: dict[str, Any] = {}

    def build(node: Node) -> Any:
        if isinstance(node, list):
            return [build(item) for item in node]
        if not isinstance(node, dict):
            return node
        tag = tag_of(node)
        if tag == "dict":
            return {unkey(key): build(item) for key, item in node[tag]}
        if tag == "ordered_dict":
            return _ordered(
                ((unkey(key), build(item)) for key, item in node[tag]), build(node.get("metadata"))
            )
        if tag == "tuple":
            return tuple(build(item) for item in node[tag])
        if tag == "type":
            return decode(node[tag], build(node["value"]))
        path = array_path(node)
        if path is None:
            return structure.decode_scalar(node, tag)
        name = node.get("tied", path)
        if name not in made:
            made[name] = array(name, tag)
        return made[name]

    return build(root)


def entries(root: Node) -> list[str | int]:
    """The keys of the outermost dict, in order; none for any other structure."""
    tag = tag_of(root) if isinstance(root, dict) else ""
    return [unkey(key) for key, _ in root[tag]] if tag in ("dict", "ordered_dict") else []


def part(root: Node, name: str) -> Node:
    """What the outermost dict has under a key. InvalidInputError names the keys there are."""
    known = entries(root)
    if name not in known:
        there = ", ".join(map(shown, known[:12])) or "no names"
        raise InvalidInputError(f"The checkpoint has no part {shown(name)}. It has {there}.")
    return root[tag_of(root)][known.index(name)][1]


def path_of(name: str) -> str:
    """The path of what the outermost dict has under a key."""
    return escape_key(name)


def select(root: Node, chosen: Callable[[str], bool]) -> Node:
    """The structure of what is chosen, or NOTHING.

    A dict loses the keys of what is not chosen. A list or tuple keeps its length, with None in place of what is not
    chosen, so that positions keep their meaning. What a codec made is kept whole or not at all.
    """
    return _Select(chosen).node(root, "")


NOTHING = object()


def plain(node: Node, *, decode: Callable[[str, object], object]) -> object:
    """A plain value; of what a codec made from arrays, only its plain form, with None for each array."""
    has_arrays = any(array_path(inner) is not None for _, inner in leaves(node))
    return unflatten(
        node,
        array=lambda path, kind: None,
        decode=(lambda name, value: value) if has_arrays else decode,
    )


class _Select:
    """The walk of one structure."""

    def __init__(self, chosen: Callable[[str], bool]) -> None:
        self.chosen = chosen
        self.first: dict[str, str] = {}

    def node(self, node: Node, path: str) -> Node:
        """What is left of a node, or NOTHING."""
        tag = tag_of(node) if isinstance(node, dict) else ""
        if isinstance(node, list):
            return self.items(node, path)
        if tag == "tuple":
            kept = self.items(node[tag], path)
            return kept if kept is NOTHING else {tag: kept}
        if tag in ("dict", "ordered_dict"):
            return self.pairs(node, tag, path)
        if tag == "type":
            names = [path, *(name for name, _ in leaves(node["value"], path))]
            return node if any(map(self.chosen, names)) else NOTHING
        if array_path(node) is not None:
            return self.array(node, tag)
        return node if self.chosen(path) else NOTHING

    def items(self, items: list[Node], path: str) -> Node:
        """A list, NOTHING when none of its items is left."""
        kept = [self.node(item, join(path, str(position))) for position, item in enumerate(items)]
        if all(item is NOTHING for item in kept) and (items or not self.chosen(path)):
            return NOTHING
        return [None if item is NOTHING else item for item in kept]

    def pairs(self, node: Node, tag: str, path: str) -> Node:
        """A dict, NOTHING when none of its values is left."""
        kept = [
            [key, part]
            for (key, item), segment in zip(node[tag], node_segments(node[tag]), strict=True)
            if (part := self.node(item, join(path, segment))) is not NOTHING
        ]
        if not kept and (node[tag] or not self.chosen(path)):
            return NOTHING
        return {**node, tag: kept}

    def array(self, node: Node, tag: str) -> Node:
        """An array; its tie is to the first of its names that is chosen."""
        path, name = node[tag], node.get("tied", node[tag])
        if not self.chosen(path):
            return NOTHING
        first = self.first.setdefault(name, path)
        return {tag: path} if first == path else {tag: path, "tied": first}


def leaves(root: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every array and plain value of a structure with its path, in the state's own order."""
    tag = tag_of(root) if isinstance(root, dict) else ""
    if isinstance(root, list) or tag == "tuple":
        for position, item in enumerate(root[tag] if tag else root):
            yield from leaves(item, join(path, str(position)))
    elif tag in ("dict", "ordered_dict"):
        for (_, item), segment in zip(root[tag], node_segments(root[tag]), strict=True):
            yield from leaves(item, join(path, segment))
        yield from _arrays(root.get("metadata"), join(path, "_metadata"))
    elif tag == "type":
        yield path, root
        yield from _arrays(root["value"], path)
    else:
        yield array_path(root) or path, root


def _arrays(root: Node, path: str) -> Iterator[tuple[str, Node]]:
    return ((name, node) for name, node in leaves(root, path) if array_path(node) is not None)


def join(path: str, segment: str) -> str:
    """The path of what lies under a segment."""
    return f"{path}/{segment}" if path else segment


def key_segments(keys: Iterable[object], path: str = "") -> list[str]:
    """The path segments of a dict's keys, each different from the others."""
    listed = list(keys)
    taken = {str(_bounded(key, path)) for key in listed if type(key) is int}
    segments = []
    for key in listed:
        if type(key) is int:
            segments.append(str(_bounded(key, path)))
        elif type(key) is str:
            segment = escape_key(key)
            segments.append(escape_first(segment) if segment in taken else segment)
        else:
            raise UnsupportedValueError(
                f"{_shown(path)} has the key {shown(key)} of type {_type(key)}; keys are strings or integers."
            )
    return segments


def _bounded(key: int, path: str) -> int:
    if not -(2**63) <= key < 2**64:
        raise UnsupportedValueError(f"{_shown(path)} has an integer key of more than 64 bits.")
    return key


def node_segments(pairs: Iterable[Sequence[Node]]) -> list[str]:
    """The path segments of the keys of a dict node."""
    return key_segments([unkey(pair[0]) for pair in pairs])


_CONTAINERS = frozenset({list, tuple, dict, OrderedDict})
_SCALARS = frozenset({type(None), bool, int, float, str, complex, bytes, bytearray})


def _scalar(value: Any, kind: type, path: str) -> Node:
    if kind is float:
        return structure.encode_float(value)
    if kind is str:
        return structure.encode_str(value)
    if kind is complex:
        return {"complex": [structure.float_hex(value.real), structure.float_hex(value.imag)]}
    if kind is bytes or kind is bytearray:
        return structure.encode_bytes(value)
    if kind is int:
        try:
            return structure.encode_int(value)
        except InvalidInputError as error:
            raise UnsupportedValueError(f"{_shown(path)} is {error}.") from error
    return value


def _marks(value: Any, depth: int, known: dict[int, int]) -> int:
    """The brackets and commas of a value's structure; each container is counted once, however often it occurs."""
    kind = type(value)
    if kind not in _CONTAINERS:
        return 0
    if depth > structure.DEPTH_MAX or len(value) > VALUES_MAX:
        return VALUES_MAX + 1
    if id(value) not in known:
        is_dict = kind in (dict, OrderedDict)
        inner = value.values() if is_dict else value
        known[id(value)] = VALUES_MAX + 1  # what holds itself has no end
        marks = 2 + 3 * len(value) if is_dict else max(1, len(value))
        known[id(value)] = marks + sum(_marks(item, depth + 1, known) for item in inner)
    return known[id(value)]


def _key(key: str | int) -> Node:
    return structure.encode_str(key) if isinstance(key, str) else structure.encode_int(key)


def unkey(key: Node) -> Any:
    """The dict key that a key node stands for."""
    return structure.decode_scalar(key, tag_of(key)) if isinstance(key, dict) else key


def _ordered(pairs: Iterable[tuple[Any, Any]], metadata: object) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict(pairs)
    if metadata is not None:
        vars(made)["_metadata"] = metadata
    return made


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:200] + "…") if path else "The state itself"


def _type(value: object) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _hint(value: object) -> str:
    if hasattr(type(value), "state_dict"):
        return "Pass its state_dict()."
    if isinstance(value, tuple):
        return "Pass tuple(value), or register_codec for its type."
    if isinstance(value, dict):
        return "Pass dict(value), or register_codec for its type."
    return "Store plain values and arrays, or register_codec for its type."

"""Structure: the tree of everything in a state that is not array content, to JSON and back.

Trees are decoded once, at this border: every node is checked, and no other module knows the tags.
In JSON a node is null, true, false, a string, an integer of 64 bits, a finite number, an array (a
list), or an object with exactly one of these tags:

    {"dict": [[key, node], …]}            keys are strings or integers, in insertion order
    {"ordered_dict": [[key, node], …]}    may have "metadata": node, for a _metadata attribute
    {"tuple": [node, …]}
    {"tensor": path}  {"ndarray": path}   may have "tied": the path of the array it is
    {"zarr": path}  {"zarr_tensor": path} an array that came in through Zarr; the second a tensor
    {"float": "16 hex digits"}            NaN or an infinity: an IEEE 754 double, big-endian
    {"complex": [16 hex, 16 hex]}
    {"int": "hex"}                        of more than 64 bits
    {"str": "hex of UTF-8"}               with surrogates
    {"bytes": "base64"}  {"bytearray": "base64"}
    {"type": name, "value": node}         encoded by the codec of that type

See section 12 of docs/reference/format.md.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from math import isfinite
from typing import TYPE_CHECKING, Any

from ckptstore.documents import canonical
from ckptstore.documents.names import PATH_LENGTH_MAX
from ckptstore.documents.nodes import (
    ZARR,
    ArrayNode,
    CodecNode,
    DictNode,
    ListNode,
    TupleNode,
    fold,
)
from ckptstore.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptstore.documents.nodes import Key, Node

STRUCTURE_BYTES_MAX = 32 << 20
DEPTH_MAX = 100
INT_BITS_MAX = 1 << 16

_ARRAYS = frozenset({"tensor", "ndarray", *ZARR})
_COMPANIONS = {"ordered_dict": "metadata", "tensor": "tied", "ndarray": "tied", "type": "value"}


def encode(root: Node) -> bytes:
    """Encode a structure to the canonical bytes whose digest names it."""
    name = "The structure of the state"
    document = {"structure": to_json(root)}
    try:
        return canonical.encode(document, name=name, bytes_max=STRUCTURE_BYTES_MAX)
    except InvalidInputError as error:
        count = fold(
            root, lambda leaf: int(isinstance(leaf, ArrayNode)), lambda _, parts: sum(parts)
        )
        raise InvalidInputError(
            f"{error} It names {count} arrays, each of which counts as 4 values: join small ones, "
            "or commit parts of the state to branches of their own. Put large lists of numbers, "
            "long texts and bytes into arrays."
        ) from error


def decode(data: bytes, *, name: str) -> Node:
    """Decode and check a structure, so that building the state cannot fail on a bad node."""
    document = canonical.decode(data, name=name, bytes_max=STRUCTURE_BYTES_MAX)
    if "structure" not in document:
        raise CorruptError(f"{name} is not a structure.")
    root: Node = _Decoder(name).node(document["structure"], 0)
    return root


def to_json(node: Node) -> Any:
    """Return the plain JSON form of a tree."""
    kind = type(node)
    return node if kind in _SAME else _FORMS[kind](node)


def is_same(one: Node, other: Node) -> bool:
    """True for trees with the same JSON form: 1, 1.0 and True differ, and NaNs by their bits."""
    return repr(to_json(one)) == repr(to_json(other))


def _all_to_json(nodes: Iterable[Node]) -> list[Any]:
    same, forms = _SAME, _FORMS
    return [node if (kind := type(node)) in same else forms[kind](node) for node in nodes]


def _encode_array(node: ArrayNode) -> dict[str, Any]:
    if node.tied is None:
        return {node.kind: node.path}
    return {node.kind: node.path, "tied": node.tied}


def _encode_dict(node: DictNode) -> dict[str, Any]:
    same, forms = _SAME, _FORMS
    pairs = [
        (
            key if not isinstance(key, str) or key.isascii() else _encode_str(key),
            part if (kind := type(part)) in same else forms[kind](part),
        )
        for key, part in node.items.items()
    ]
    if not node.is_ordered:
        return {"dict": pairs}
    form: dict[str, Any] = {"ordered_dict": pairs}
    return form if node.metadata is None else {**form, "metadata": to_json(node.metadata)}


def _encode_bytes(value: bytes | bytearray) -> dict[str, Any]:
    return {type(value).__name__: base64.b64encode(value).decode("ascii")}


def _encode_float(value: float) -> Any:
    return value if isfinite(value) else {"float": _float_hex(value)}


def _encode_str(value: str) -> Any:
    if value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value):
        return value
    return {"str": value.encode("utf-8", "surrogatepass").hex()}


def _encode_int(value: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    if value.bit_length() > INT_BITS_MAX:
        raise InvalidInputError(
            f"an integer of {value.bit_length()} bits is larger than {INT_BITS_MAX} bits"
        )
    return {"int": f"{value:x}"}


def _float_hex(value: float) -> str:
    return struct.pack(">d", value).hex()


_SAME = frozenset({type(None), bool})  # what is its own JSON form
_FORMS: dict[type, Callable[[Any], Any]] = {
    ArrayNode: _encode_array,
    DictNode: _encode_dict,
    ListNode: lambda node: _all_to_json(node.items),
    TupleNode: lambda node: {"tuple": _all_to_json(node.items)},
    CodecNode: lambda node: {"type": node.type, "value": to_json(node.value)},
    float: _encode_float,
    int: _encode_int,
    str: _encode_str,
    complex: lambda value: {"complex": [_float_hex(value.real), _float_hex(value.imag)]},
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
}


class _Decoder:
    """Decodes the nodes of one document."""

    def __init__(self, name: str) -> None:
        self.name = name

    def refused(self, what: str) -> CorruptError:
        """The error for a document that holds this."""
        return CorruptError(f"{self.name} {what}.")

    def node(self, value: Any, depth: int) -> Any:
        """A node and everything in it."""
        if depth > DEPTH_MAX:
            raise self.refused(f"is nested deeper than {DEPTH_MAX} levels")
        kind = type(value)
        if kind is dict:
            return self.tagged(value, depth)
        if kind is list:
            return ListNode(self.items(value, depth))
        if kind is int and not -(2**63) <= value < 2**64:
            raise self.refused("holds an integer of more than 64 bits")
        return value

    def items(self, values: list[Any], depth: int) -> tuple[Node, ...]:
        """Return the items of a list or tuple."""
        bare = _BARE if depth < DEPTH_MAX else ()
        return tuple(
            [item if type(item) in bare else self.node(item, depth + 1) for item in values]
        )

    def tagged(self, fields: dict[str, Any], depth: int) -> Any:
        """Return a node that is a JSON object."""
        has_one = len(fields) == 1  # as nearly all of them, so that this is made fast
        (tag,) = fields if has_one else [next((tag for tag in fields if tag in _KNOWN), "")]
        if tag not in _KNOWN or not (has_one or fields.keys() == {tag, _COMPANIONS.get(tag)}):
            tags = f"{sorted(fields)!r:.100}"
            raise self.refused(f"holds a node with the tags {tags}, which has no meaning")
        content = fields[tag]
        if tag in _ARRAYS:
            for path in fields.values():
                if type(path) is not str or len(path) > PATH_LENGTH_MAX:
                    raise self.refused("holds an array node without a path")
            return ArrayNode(tag, content, None if has_one else fields["tied"])
        if tag == "dict":
            return DictNode(self.pairs(content, depth))
        if tag == "ordered_dict":
            metadata = None if has_one else self.node(fields["metadata"], depth + 1)
            return DictNode(self.pairs(content, depth), True, metadata)
        if tag == "tuple":
            if not isinstance(content, list):
                raise self.refused("holds a tuple that is not a JSON array")
            return TupleNode(self.items(content, depth))
        if tag == "type":
            if not isinstance(content, str) or "value" not in fields:
                raise self.refused("holds a typed node without a type or a value")
            return CodecNode(content, self.node(fields["value"], depth + 1))
        return self.plain(content, tag)

    def pairs(self, content: Any, depth: int) -> dict[Key, Node]:
        """Return the keys and values of a dict."""
        if not isinstance(content, list) or (
            content and ({*map(type, content)} != {list} or {*map(len, content)} != {2})
        ):
            raise self.refused("holds a dict that is not a list of pairs")
        bare = _BARE if depth < DEPTH_MAX else ()
        items = {
            key if type(key) is str else self.key(key): (
                value if type(value) in bare else self.node(value, depth + 1)
            )
            for key, value in content
        }
        if len(items) != len(content):
            raise self.refused("holds a dict with a duplicate key")
        return items

    def key(self, key: Any) -> Any:
        """The key of a dict."""
        if type(key) is int and -(2**63) <= key < 2**64:
            return key
        if isinstance(key, dict) and key.keys() == {"str"}:
            return self.plain(key["str"], "str")
        expected = "strings and integers of 64 bits are expected"
        raise self.refused(f"holds a dict with the key {key!r:.60}; {expected}")

    def plain(self, content: Any, tag: str) -> Any:
        """A plain value that has a tag."""
        try:
            return _PLAIN[tag](content)
        except (ValueError, TypeError, IndexError, struct.error, binascii.Error) as error:
            raise self.refused(f"holds a {tag} that cannot be read: {str(error)[:100]}") from error


def _decode_float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError("16 hexadecimal digits are expected")
    (value,) = struct.unpack(">d", bytes.fromhex(text))
    return float(value)


def _decode_complex(parts: list[str]) -> complex:
    real, imaginary = parts
    return complex(_decode_float(real), _decode_float(imaginary))


def _decode_int(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError(f"at most {INT_BITS_MAX} bits in hexadecimal digits are expected")
    return int(text, 16)


def _decode_str(text: str) -> str:
    if not _HEX.fullmatch(text):
        raise ValueError("hexadecimal digits are expected")
    return bytes.fromhex(text).decode("utf-8", "surrogatepass")


_BARE = frozenset({type(None), bool, float, str})  # JSON values that are their own nodes
_FLOAT = re.compile(r"[0-9a-f]{16}")
_INT = re.compile(rf"-?[0-9a-f]{{1,{INT_BITS_MAX // 4}}}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_PLAIN: dict[str, Any] = {
    "float": _decode_float,
    "complex": _decode_complex,
    "int": _decode_int,
    "str": _decode_str,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
}
_KNOWN = frozenset({"dict", "ordered_dict", "tuple", "type"}) | _ARRAYS | _PLAIN.keys()

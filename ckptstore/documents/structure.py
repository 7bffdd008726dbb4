"""Structure: the non-array skeleton of a state, as tagged JSON.

A node is null, true, false, a string, an integer of 64 bits, a finite number, a JSON array (a list), or an object that
carries exactly one of these tags:

    {"dict": [[key, node], …]}            keys are strings or integers, in insertion order
    {"ordered_dict": [[key, node], …]}    the same, with "metadata": node where the dict carried a _metadata
    {"tuple": [node, …]}                  {"tensor": path}  {"ndarray": path}   with "tied": path of the array it is
    {"zarr": path}  {"zarr_tensor": path} an array that came in through Zarr, by the path of its node; the second was a tensor
    {"float": "16 hex digits"}            IEEE 754, big-endian: what JSON has no number for
    {"complex": [16 hex, 16 hex]}         {"int": "hex"}    {"str": "hex of UTF-8 with surrogates"}
    {"bytes": "base64"}  {"bytearray": "base64"}            {"type": name, "value": node}   a registered codec's

This module encodes and checks; `ckptstore.state.tree` walks Python values.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from typing import Any

from ckptstore.documents import canonical
from ckptstore.documents.names import PATH_LENGTH_MAX
from ckptstore.errors import CorruptError, InvalidInputError

STRUCTURE_BYTES_MAX = 32 << 20
DEPTH_MAX = 100
INT_BITS_MAX = 1 << 16

Node = Any
ZARR = {"zarr": "ndarray", "zarr_tensor": "tensor"}  # what a checkout makes of each
_ARRAYS = frozenset({"tensor", "ndarray", *ZARR})
_COMPANIONS = {"ordered_dict": "metadata", "tensor": "tied", "ndarray": "tied", "type": "value"}


def encode(root: Node) -> bytes:
    """Encode a structure to the canonical bytes whose digest names it."""
    name = "The structure of the state (put large lists of numbers into an array)"
    return canonical.encode({"structure": root}, name=name, bytes_max=STRUCTURE_BYTES_MAX)


def decode(data: bytes, *, name: str) -> Node:
    """Decode a structure; every node is checked, so that building the state meets no surprise."""
    document = canonical.decode(data, name=name, bytes_max=STRUCTURE_BYTES_MAX)
    if "structure" not in document:
        raise CorruptError(f"{name} is not a structure.")
    root = document["structure"]
    _check(root, name=name, depth=0)
    return root


def tag_of(node: Node) -> str:
    """The tag of a node that is a JSON object."""
    return next(str(tag) for tag in node if tag not in ("metadata", "tied", "value"))


def array_path(node: Node) -> str | None:
    """The path of an array node, or None for any other node."""
    if not isinstance(node, dict):
        return None
    path = next((node[tag] for tag in node if tag in _ARRAYS), None)
    return path if isinstance(path, str) else None


def encode_int(value: int) -> Node:
    """An integer of any size."""
    if -(2**63) <= value < 2**64:
        return value
    if value.bit_length() > INT_BITS_MAX:
        raise InvalidInputError(
            f"an integer of {value.bit_length()} bits is larger than {INT_BITS_MAX} bits"
        )
    return {"int": f"{value:x}"}


def encode_float(value: float) -> Node:
    """A float, bit for bit."""
    return value if math.isfinite(value) else {"float": float_hex(value)}


def float_hex(value: float) -> str:
    """The 16 hexadecimal digits of a double, big-endian."""
    return struct.pack(">d", value).hex()


def encode_str(value: str) -> Node:
    """A string; one with lone surrogates goes by its bytes."""
    if value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value):
        return value
    return {"str": value.encode("utf-8", "surrogatepass").hex()}


def encode_bytes(value: bytes | bytearray) -> Node:
    """Bytes or a bytearray."""
    tag = "bytearray" if isinstance(value, bytearray) else "bytes"
    return {tag: base64.b64encode(value).decode("ascii")}


def decode_scalar(node: dict[str, Any], tag: str) -> object:
    """The value of a checked scalar node."""
    return _SCALARS[tag](node[tag])


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


_FLOAT = re.compile(r"[0-9a-f]{16}")
_INT = re.compile(rf"-?[0-9a-f]{{1,{INT_BITS_MAX // 4}}}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_SCALARS: dict[str, Any] = {
    "float": _decode_float,
    "complex": _decode_complex,
    "int": _decode_int,
    "str": _decode_str,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
}


def _check(node: Node, *, name: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise CorruptError(f"{name} is nested deeper than {DEPTH_MAX} levels.")
    if isinstance(node, list):
        for item in node:
            _check(item, name=name, depth=depth + 1)
    elif isinstance(node, dict):
        _check_object(node, name=name, depth=depth)
    elif type(node) is int and not -(2**63) <= node < 2**64:
        raise CorruptError(f"{name} holds an integer of more than 64 bits.")


def _check_object(node: dict[str, Any], *, name: str, depth: int) -> None:
    tags = [tag for tag in node if tag in _KNOWN]
    if len(tags) != 1 or not node.keys() <= {tags[0], _COMPANIONS.get(tags[0], tags[0])}:
        raise CorruptError(
            f"{name} holds a node with the tags {sorted(node)!r:.100}, which has no meaning."
        )
    tag = tags[0]
    if tag in ("dict", "ordered_dict"):
        for _, item in _pairs(node[tag], name=name):
            _check(item, name=name, depth=depth + 1)
        _check(node.get("metadata"), name=name, depth=depth + 1)
    elif tag == "tuple":
        if not isinstance(node[tag], list):
            raise CorruptError(f"{name} holds a tuple that is not a JSON array.")
        _check(node[tag], name=name, depth=depth)
    elif tag in _ARRAYS:
        for path in node.values():
            if not isinstance(path, str) or len(path) > PATH_LENGTH_MAX:
                raise CorruptError(f"{name} holds an array node without a path.")
    elif tag == "type":
        if not isinstance(node["type"], str) or "value" not in node:
            raise CorruptError(f"{name} holds a typed node without a type or a value.")
        _check(node["value"], name=name, depth=depth + 1)
    else:
        _check_scalar(node[tag], tag, name=name)


def _check_scalar(value: object, tag: str, *, name: str) -> None:
    try:
        _SCALARS[tag](value)
    except (ValueError, TypeError, IndexError, struct.error, binascii.Error) as error:
        raise CorruptError(
            f"{name} holds a {tag} that cannot be read: {str(error)[:100]}."
        ) from error


def _pairs(items: object, *, name: str) -> list[list[Any]]:
    if not isinstance(items, list) or any(
        not isinstance(pair, list) or len(pair) != 2 for pair in items
    ):
        raise CorruptError(f"{name} holds a dict that is not a list of pairs.")
    keys = [_check_key(pair[0], name=name) for pair in items]
    if len(set(keys)) != len(keys):
        raise CorruptError(f"{name} holds a dict with a key that stands twice.")
    return items


def _check_key(key: object, *, name: str) -> str | int:
    """The Python key that a key node stands for."""
    if isinstance(key, dict) and key.keys() == {"str"}:
        _check_scalar(key["str"], "str", name=name)
        return str(decode_scalar(key, "str"))
    if type(key) is str or (type(key) is int and -(2**63) <= key < 2**64):
        return key
    raise CorruptError(
        f"{name} holds a dict with the key {key!r:.60}; strings and integers of 64 bits are expected."
    )


_KNOWN = frozenset({"dict", "ordered_dict", "tuple", "type"}) | _ARRAYS | _SCALARS.keys()

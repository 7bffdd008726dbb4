"""Structures: what comes back from their bytes, and every node that has no meaning is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from ckptstore.documents import structure
from ckptstore.documents.nodes import CodecNode, DictNode, ListNode, TupleNode
from ckptstore.errors import CorruptError, InvalidInputError
from ckptstore.state.flatten import flatten, unflatten
from ckptstore.testing.strategies import plain_values, states
from tests.helpers.equality import difference


def nothing(value: object) -> None:
    """No value is an array, and no type has a codec."""


def plain(value: Any) -> bool:
    return type(value).__module__ == "builtins"


PLAIN = states(leaves=plain_values().filter(plain), max_leaves=30)


@given(PLAIN)
def test_a_state_of_plain_values_comes_back_from_the_bytes(value: Any) -> None:
    root = flatten(value, describe=nothing, encode=nothing).root
    read = structure.decode(structure.encode(root), name="this")
    again = unflatten(read, array=lambda path, kind: None, decode=lambda name, made: made)
    assert difference(value, again) is None
    assert structure.encode(read) == structure.encode(root)


NODES: dict[str, Any] = {
    "no tag": {},
    "an unknown tag": {"set": []},
    "two tags": {"dict": [], "tuple": []},
    "a tag with a companion of another": {"dict": [], "metadata": None},
    "a companion alone": {"tied": "a"},
    "a dict that is none": {"dict": {}},
    "a dict of triples": {"dict": [["a", 1, 2]]},
    "a dict with a key twice": {"dict": [["a", 1], ["a", 2]]},
    "a dict with a key twice in two forms": {"dict": [["a", 1], [{"str": "61"}, 2]]},
    "a boolean key": {"dict": [[True, 1]]},
    "a float key": {"dict": [[1.0, 1]]},
    "no key": {"dict": [[None, 1]]},
    "a huge key": {"dict": [[1 << 64, 1]]},
    "a key of another tag": {"dict": [[{"int": "1"}, 1]]},
    "a key of broken hex": {"dict": [[{"str": "6"}, 1]]},
    "a tuple that is none": {"tuple": 5},
    "a tensor without a path": {"tensor": 5},
    "a tensor with a long path": {"tensor": "a" * 5000},
    "a tie to nothing": {"tensor": "a", "tied": None},
    "a float of 15 digits": {"float": "0" * 15},
    "a float in upper case": {"float": "7FF0000000000000"},
    "a float with a line's end": {"float": "7ff0000000000000\n"},
    "a complex of one part": {"complex": ["0" * 16]},
    "a complex of text": {"complex": "00"},
    "an int with a prefix": {"int": "0x10"},
    "an int with an underscore": {"int": "1_0"},
    "an int too large": {"int": "f" * (structure.INT_BITS_MAX // 4 + 1)},
    "an int that is one": {"int": 5},
    "text that is no UTF-8": {"str": "ff"},
    "bytes that are no base64": {"bytes": "A"},
    "bytes with a foreign sign": {"bytes": "A*A="},
    "a bytearray that is none": {"bytearray": None},
    "a type without a value": {"type": "x"},
    "a type without a name": {"type": 5, "value": 1},
    "an integer of 65 bits": 1 << 64,
    "a negative integer of 65 bits": -(1 << 63) - 1,
}


@pytest.mark.parametrize("kind", NODES)
def test_a_node_without_a_meaning_is_refused_however_deep(kind: str) -> None:
    for root in (NODES[kind], [1, {"tuple": [{"dict": [["k", NODES[kind]]]}]}]):
        data = json.dumps({"structure": root}, sort_keys=True).encode()
        with pytest.raises(CorruptError, match="this"):
            structure.decode(data, name="this")


def test_a_document_without_a_structure_is_refused() -> None:
    with pytest.raises(CorruptError, match="this is not a structure"):
        structure.decode(b'{"nodes":[]}', name="this")


@pytest.mark.parametrize("container", ["list", "tuple", "dict", "metadata", "type"])
def test_writer_and_reader_agree_on_how_deep_is_too_deep(container: str) -> None:
    def nested(depth: int) -> Any:
        node: Any = 1
        for _ in range(depth):
            node = {
                "list": ListNode((node,)),
                "tuple": TupleNode((node,)),
                "dict": DictNode({"k": node}),
                "metadata": DictNode({}, is_ordered=True, metadata=node),
                "type": CodecNode("t", node),
            }[container]
        return node

    data = structure.encode(nested(structure.DEPTH_MAX))
    assert structure.decode(data, name="this") == nested(structure.DEPTH_MAX)
    with pytest.raises(CorruptError, match="nested deeper"):
        structure.decode(structure.encode(nested(structure.DEPTH_MAX + 1)), name="this")


def test_integers_of_any_size_up_to_the_limit_have_a_form() -> None:
    for value in (
        0,
        -1,
        2**63,
        -(2**63),
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        1 << 65535,
        -(1 << 65535),
    ):
        assert structure.decode(structure.encode(value), name="this") == value
    with pytest.raises(InvalidInputError, match="65537 bits"):
        structure.encode(1 << 65536)

"""States taken apart and put together: the paths of their arrays, and their ties."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import UnsupportedValueError
from ckptstore.state import tree
from ckptstore.state.flatten import unflatten
from ckptstore.testing.strategies import keys
from tests.helpers.boxes import STATES, Box, build, flatten, ways


@given(STATES)
def test_every_array_has_one_path_and_comes_back_to_its_place(value: Any) -> None:
    flat = flatten(value)
    boxes = [leaf for leaf in ways(value).values() if isinstance(leaf, Box)]
    assert list(flat.arrays.values()) == boxes
    assert build(flat.root, dict(flat.arrays)) == value
    assert [node.path for node in tree.arrays(flat.root)] == list(flat.arrays)


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (Box(1), ["array"]),
        ([Box(1), (Box(2),)], ["0", "1/0"]),
        (
            {"model": {"wte.weight": Box(1)}, "optimizer": {"state": {0: {"exp_avg": Box(2)}}}},
            ["model/wte.weight", "optimizer/state/0/exp_avg"],
        ),
        ({"a/b": Box(1), "a": {"b": Box(2)}}, ["a%2Fb", "a/b"]),
        ({0: Box(1), "0": Box(2)}, ["0", "%30"]),
        ({"": Box(1), "%": {"": Box(2)}}, ["%", "%25/%"]),
        ({"array": Box(1)}, ["array"]),
    ],
)
def test_paths_are_the_keys_joined(value: Any, paths: list[str]) -> None:
    assert list(flatten(value).arrays) == paths


def test_names_of_the_same_memory_are_tied_to_the_first_in_the_states_order() -> None:
    z, other = Box(1, memory=7), Box(2, memory=None)
    flat = flatten({"z": z, "a": [z, other, other], "m": {"k": z}})
    assert flat.tied == {"a/0": "z", "m/k": "z"}
    assert list(flat.arrays) == ["z", "a/0", "a/1", "a/2", "m/k"]
    asked: list[str] = []
    made = unflatten(
        flat.root, array=lambda path, kind: asked.append(path) or [path], decode=lambda n, v: v
    )
    assert asked == ["z", "a/1", "a/2"]
    assert made["z"] is made["a"][0] is made["m"]["k"]


def test_the_metadata_of_a_state_dict_comes_along() -> None:
    value = OrderedDict(w=Box(1))
    vars(value)["_metadata"] = OrderedDict({"": {"version": 1}, "body": {"scale": Box(2)}})
    flat = flatten({"model": value})
    assert list(flat.arrays) == ["model/w", "model/_metadata/body/scale"]
    found = build(flat.root, dict(flat.arrays))["model"]
    assert found == value
    assert found._metadata == value._metadata
    assert type(found._metadata) is OrderedDict
    # A key of that name beside it would give two arrays one path.
    value["_metadata"] = {"body": {"scale": Box(3)}}
    with pytest.raises(UnsupportedValueError, match="Two arrays"):
        flatten({"model": value})


@pytest.mark.parametrize(
    "make",
    [lambda inner: [inner], lambda inner: (inner,), lambda inner: {0: inner}],
    ids=["list", "tuple", "dict"],
)
def test_a_state_may_be_as_deep_as_a_structure_and_no_deeper(make: Any) -> None:
    value: Any = Box(1)
    for _ in range(DEPTH_MAX):
        value = make(value)
    flat = flatten(value)
    assert build(flat.root, dict(flat.arrays)) == value
    with pytest.raises(UnsupportedValueError, match="levels deep"):
        flatten(make(value))


def test_a_value_of_no_known_type_is_named_with_its_path_and_a_way_out() -> None:
    with pytest.raises(
        UnsupportedValueError, match=r"'a/1/%2F' is of type object\. .*register_codec"
    ):
        flatten({"a": [1, {"/": object()}]})


@given(st.dictionaries(keys(), st.integers(), max_size=6))
def test_keys_keep_their_type_and_order(value: dict[Any, int]) -> None:
    found = build(flatten(value).root, {})
    assert [(type(key), key) for key in found] == [(type(key), key) for key in value]


def test_a_structure_keeps_its_own_copy_of_what_can_change() -> None:
    value = {"a": bytearray(b"x"), "b": [1], "c": {"d": 2}}
    flat = flatten(value)
    value["a"].extend(b"y")
    value["b"].append(3)
    value["c"]["e"] = 4
    one = build(flat.root, {})
    one["a"].extend(b"z")
    assert build(flat.root, {}) == {"a": bytearray(b"x"), "b": [1], "c": {"d": 2}}

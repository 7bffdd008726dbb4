"""Flattened states: paths of arrays, ties, and what a selection keeps."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.nodes import ArrayNode, DictNode
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import UnsupportedValueError
from ckptstore.state import flatten as flattening
from ckptstore.state import tree
from ckptstore.state.flatten import Flat, unflatten
from ckptstore.testing.strategies import keys, states


@dataclass(frozen=True)
class Box:
    """Stands for an array; `memory` for where it lies."""

    name: int
    memory: int | None = None
    kind: str = "tensor"

    @property
    def identity(self) -> object:
        return self.memory


def describe(value: object) -> Box | None:
    return value if isinstance(value, Box) else None


def flatten(value: Any) -> Flat[Box]:
    return flattening.flatten(value, describe=describe, encode=lambda value: None)


def build(root: Any, arrays: dict[str, Box]) -> Any:
    return unflatten(root, array=lambda path, kind: arrays[path], decode=lambda n, v: v)


BOXES = st.builds(Box, st.integers(0, 10**6))
STATES = states(leaves=BOXES | st.integers(0, 9) | st.none(), max_leaves=25)


def ways(value: Any, way: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every leaf by the keys and positions that lead to it, with the type of each key."""
    if isinstance(value, dict):
        pairs = [((type(key), key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return {way: value}
    return {w: leaf for key, item in pairs for w, leaf in ways(item, (*way, key)).items()}


@given(STATES)
def test_every_array_has_one_path_and_comes_back_to_its_place(value: Any) -> None:
    flat = flatten(value)
    boxes = [leaf for leaf in ways(value).values() if isinstance(leaf, Box)]
    assert list(flat.arrays.values()) == boxes
    assert build(flat.root, dict(flat.arrays)) == value
    assert [node.path for node in tree.arrays(flat.root)] == list(flat.arrays)


@given(STATES)
def test_the_leaves_of_a_structure_are_those_of_the_state_with_paths_of_their_own(
    value: Any,
) -> None:
    found = list(tree.leaves(flatten(value).root))
    assert len({path for path, _ in found}) == len(found) == len(ways(value))


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


@given(STATES, st.data())
def test_a_selection_leaves_what_is_chosen_where_it_was(value: Any, data: st.DataObject) -> None:
    """Dicts lose the keys of the rest, lists and tuples have None in its place."""
    flat = flatten(value)
    names = [path for path, _ in tree.leaves(flat.root)]
    chosen = set(data.draw(st.lists(st.sampled_from(names)))) if names else set()
    kept = tree.prune(flat.root, chosen.__contains__)
    if not chosen:
        assert kept is tree.NOTHING
        return
    before = dict(zip(names, ways(value).items(), strict=True))
    expected = {way: leaf for path, (way, leaf) in before.items() if path in chosen}
    found = ways(build(kept, dict(flat.arrays)))
    assert {way: found[way] for way in expected} == expected
    assert all(leaf is None for way, leaf in found.items() if way not in expected)
    assert [node.path for node in tree.arrays(kept)] == [
        path for path in flat.arrays if path in chosen
    ]


@given(STATES)
def test_choosing_everything_changes_nothing(value: Any) -> None:
    root = flatten(value).root
    assert tree.prune(root, lambda path: True) == root


def test_ties_among_what_is_chosen_stay() -> None:
    tied = Box(1, memory=5)
    root = flatten({"a": tied, "b": tied, "c": tied}).root
    kept = tree.prune(root, lambda path: path != "a")
    assert kept == DictNode({"b": ArrayNode("tensor", "b"), "c": ArrayNode("tensor", "c", "b")})


def test_empty_containers_are_chosen_by_their_own_path() -> None:
    root = flatten({"a": {}, "b": [], "c": ({},), "d": 1}).root
    kept = tree.prune(root, lambda path: path in ("a", "c/0"))
    assert build(kept, {}) == {"a": {}, "c": ({},)}


@given(st.dictionaries(keys(), st.integers(), max_size=6))
def test_keys_keep_their_type_and_order(value: dict[Any, int]) -> None:
    found = build(flatten(value).root, {})
    assert [(type(key), key) for key in found] == [(type(key), key) for key in value]

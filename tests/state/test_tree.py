"""What is asked and made of a structure: its leaves, what a selection leaves of it, its ties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.nodes import ArrayNode, CodecNode, DictNode, ListNode
from ckptstore.documents.structure import is_same
from ckptstore.errors import InvalidInputError
from ckptstore.state import tree
from ckptstore.state.selection import Selection
from tests.helpers.boxes import RICH_STATES, STATES, Box, build, flatten, ways


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


def test_a_state_that_is_one_array_is_chosen_by_the_path_of_the_array() -> None:
    root = flatten(Box(1)).root
    assert tree.prune(root, Selection.of(None, "array")) is tree.NOTHING
    assert tree.prune(root, Selection.of("array", None)) == root


@pytest.mark.parametrize("name", [["a"], {}, {"a"}])
def test_a_part_that_has_no_hash_is_refused_like_any_other(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="has no part"):
        tree.part(flatten({"a": 1}).root, name)


@pytest.mark.parametrize("path", ["f", "f/0", "f/1"])
def test_a_value_of_a_codec_is_kept_whole_by_the_path_of_anything_in_it(path: str) -> None:
    codec = CodecNode("a type", ListNode((1, ArrayNode("tensor", "f/1"))))
    root = DictNode({"f": codec, "g": 2})
    assert tree.prune(root, path.__eq__) == DictNode({"f": codec})


def test_empty_containers_are_chosen_by_their_own_path() -> None:
    root = flatten({"a": {}, "b": [], "c": ({},), "d": 1}).root
    kept = tree.prune(root, lambda path: path in ("a", "c/0"))
    assert build(kept, {}) == {"a": {}, "c": ({},)}


@given(STATES)
def test_the_leaves_of_a_structure_are_those_of_the_state_with_paths_of_their_own(
    value: Any,
) -> None:
    found = list(tree.leaves(flatten(value).root))
    assert len({path for path, _ in found}) == len(found) == len(ways(value))


def test_a_selection_that_chooses_nothing_is_an_error_that_names_both() -> None:
    root = flatten({"a": 1}).root
    selection = Selection.of("b", None)
    with pytest.raises(InvalidInputError, match="Nothing in checkpoint x matches include 'b'"):
        tree.select(root, selection, name="checkpoint x")


@given(RICH_STATES)
def test_the_ties_of_a_structure_stay_when_they_are_made_anew(value: Any) -> None:
    root = flatten(value).root
    assert is_same(tree.retie(root), root)


@given(RICH_STATES, st.data())
def test_what_is_left_is_tied_to_what_is_left(value: Any, data: st.DataObject) -> None:
    root = flatten(value).root
    names = [path for path, _ in tree.leaves(root)]
    chosen = set(data.draw(st.lists(st.sampled_from(names)))) if names else set()
    kept = tree.prune(root, chosen.__contains__)
    if kept is tree.NOTHING:
        return
    firsts = {node.path: node.first for node in tree.arrays(root)}
    left: dict[str, str] = {}
    for node in tree.arrays(kept):
        assert node.first == left.setdefault(firsts[node.path], node.path)


def test_arrays_from_zarr_are_tied_to_nothing() -> None:
    """Their paths are those of nodes, which may be what an array of the state was tied to."""
    root = ListNode((ArrayNode("zarr", "a"), ArrayNode("tensor", "b", "a")))
    assert tree.retie(root) == ListNode((ArrayNode("zarr", "a"), ArrayNode("tensor", "b")))


def test_a_part_is_found_by_its_key_and_others_are_listed() -> None:
    root = DictNode({"a": CodecNode("t", 1), 0: 2})
    assert tree.keys(root) == ["a", 0]
    assert tree.part(root, "a") == CodecNode("t", 1)
    with pytest.raises(InvalidInputError, match=r"no part '0'\. It has 'a', 0"):
        tree.part(root, "0")
    with pytest.raises(InvalidInputError, match="It has no names"):
        tree.part(ListNode((1,)), "a")

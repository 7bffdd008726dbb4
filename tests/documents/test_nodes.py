"""Nodes: the fold sees every part of a tree once, and trees come back from their bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given

from ckptstore.documents import structure
from ckptstore.documents.nodes import (
    ArrayNode,
    CodecNode,
    DictNode,
    InnerNode,
    ListNode,
    TupleNode,
    fold,
    parts,
    with_parts,
)
from ckptstore.state import tree
from tests.helpers.boxes import RICH_STATES, flatten


@given(RICH_STATES)
def test_a_tree_with_its_own_parts_is_the_same_tree(value: Any) -> None:
    root = flatten(value).root
    assert structure.is_same(fold(root, lambda leaf: leaf, with_parts), root)


@given(RICH_STATES)
def test_the_fold_meets_the_arrays_in_the_order_of_the_state(value: Any) -> None:
    flat = flatten(value)
    paths: list[str] = []

    def leaf(node: Any) -> None:
        if isinstance(node, ArrayNode):
            paths.append(node.path)

    fold(flat.root, leaf, lambda node, below: None)
    assert paths == list(flat.arrays) == [node.path for node in tree.arrays(flat.root)]


@given(RICH_STATES)
def test_a_fold_combines_the_results_of_all_parts(value: Any) -> None:
    def size(node: Any) -> int:
        return 1 + sum(map(size, parts(node))) if isinstance(node, InnerNode) else 1

    root = flatten(value).root
    assert fold(root, lambda leaf: 1, lambda node, below: 1 + sum(below)) == size(root)


@given(RICH_STATES)
def test_a_tree_comes_back_from_its_bytes(value: Any) -> None:
    root = flatten(value).root
    data = structure.encode(root)
    read = structure.decode(data, name="this")
    assert structure.is_same(read, root)
    assert structure.encode(read) == data


def test_metadata_is_the_last_part_of_a_dict() -> None:
    node = DictNode({"a": 1}, is_ordered=True, metadata=ListNode((2,)))
    assert list(parts(node)) == [1, ListNode((2,))]
    assert with_parts(node, [3, None]) == DictNode({"a": 3}, is_ordered=True, metadata=None)
    assert with_parts(CodecNode("t", 1), [2]) == CodecNode("t", 2)
    assert with_parts(TupleNode((1, 2)), [3, 4]) == TupleNode((3, 4))

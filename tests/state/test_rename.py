"""Renames: which pattern gives a path its new name, and that the work grows with the arrays."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore import InvalidInputError
from ckptstore.documents.nodes import ArrayNode, DictNode
from ckptstore.state.rename import Rename, move

PARTS = ["a", "b", "ab", ".", r"\.", r"\-", "-", "[ab]", "(a|b)", "a?", ".*", "/", r"\w"]
pattern = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)
path = st.text("ab.-/", min_size=1, max_size=4)


@given(st.lists(pattern, unique=True, max_size=6), st.lists(path, unique=True, min_size=1))
def test_the_first_pattern_that_matches_a_whole_path_names_it(
    patterns: list[str], paths: list[str]
) -> None:
    rename = Rename.of({old: f"new/{number}" for number, old in enumerate(patterns)})
    first = {
        path: next((n for n, old in enumerate(patterns) if re.fullmatch(old, path)), None)
        for path in paths
    }
    used = {n for n, old in enumerate(patterns) if any(re.fullmatch(old, path) for path in paths)}
    expected = {path: path if n is None else f"new/{n}" for path, n in first.items()}
    if len(used) < len(patterns):
        unused = next(old for n, old in enumerate(patterns) if n not in used)
        with pytest.raises(InvalidInputError, match=re.escape(repr(unused))):
            rename.names(paths)
    elif len(set(expected.values())) < len(paths):
        with pytest.raises(InvalidInputError, match="Two arrays"):
            rename.names(paths)
    else:
        assert rename.names(paths) == expected


def calls_of(act: Any) -> int:
    """How many functions a call calls, those in C included."""
    count = 0

    def note(*event: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def spelled_out(count: int) -> None:
    """Rename each array by a pattern of its own."""
    rename = Rename.of({re.escape(f"model/layer.{n}"): f"model/l.{n}" for n in range(count)})
    rename.names([f"model/layer.{n}" for n in range(count)])


def within_a_dict(count: int) -> None:
    """Give each array of one dict a new key of the same dict, which reads like a number."""
    keys = [f"model/layer.{n}" for n in range(count)]
    items: Any = {key[6:]: ArrayNode("ndarray", key, None) for key in keys}
    root = DictNode({"model": DictNode(items)})
    move(root, {key: f"model/{key[12:]}" for key in keys}, source=root)


@pytest.mark.parametrize("act", [spelled_out, within_a_dict])
def test_twice_as_many_arrays_take_twice_as_much_work(act: Any) -> None:
    act(3)  # what is done once
    assert calls_of(lambda: act(800)) < 2.5 * calls_of(lambda: act(400))

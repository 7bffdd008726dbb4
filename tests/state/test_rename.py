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
from ckptstore.state.rename import Names, Rename, move

PARTS = ["a", "b", "ab", ".", r"\.", r"\-", "-", "[ab]", "(a|b)", "a?", ".*", "/", r"\w"]
pattern = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)
path = st.lists(st.text("ab.-", min_size=1, max_size=2), min_size=1, max_size=3).map("/".join)


def upwards(path: str) -> list[str]:
    """A path and those above it, the longest first."""
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]


@given(st.lists(pattern, unique=True, max_size=6), st.lists(path, unique=True, min_size=1))
def test_the_first_pattern_that_matches_a_whole_path_names_it(
    patterns: list[str], paths: list[str]
) -> None:
    """A pattern that matches no array may match a key, with which what is below it moves."""
    rename = Rename.of({old: f"new/{number}" for number, old in enumerate(patterns)})
    for_arrays = {n for n, old in enumerate(patterns) if any(re.fullmatch(old, p) for p in paths)}
    keys = {
        key: next(
            n for n, old in enumerate(patterns) if n not in for_arrays and re.fullmatch(old, key)
        )
        for key in sorted({above for path in paths for above in upwards(path)[1:]} - {*paths})
        if any(n not in for_arrays and re.fullmatch(old, key) for n, old in enumerate(patterns))
    }
    unused = [
        old
        for n, old in enumerate(patterns)
        if n not in for_arrays
        and not any(
            re.fullmatch(old, key) for path in paths for key in upwards(path) if key not in paths
        )
    ]
    expected = {}
    for path in paths:
        number = next((n for n, old in enumerate(patterns) if re.fullmatch(old, path)), None)
        above = next((key for key in upwards(path) if key in keys), None)
        if number is not None:
            expected[path] = f"new/{number}"
        else:
            expected[path] = path if above is None else f"new/{keys[above]}{path[len(above) :]}"
    if unused:
        with pytest.raises(InvalidInputError, match=re.escape(repr(unused[0]))):
            rename.names(paths)
    elif len(set(expected.values())) < len(paths):
        with pytest.raises(InvalidInputError, match="Two arrays"):
            rename.names(paths)
    else:
        names = rename.names(paths)
        assert names.arrays == expected
        assert names.keys == {key: f"new/{n}" for key, n in keys.items()}


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
    move(root, Names(arrays={key: f"model/{key[12:]}" for key in keys}), source=root)


@pytest.mark.parametrize("act", [spelled_out, within_a_dict])
def test_twice_as_many_arrays_take_twice_as_much_work(act: Any) -> None:
    act(3)  # what is done once
    assert calls_of(lambda: act(800)) < 2.5 * calls_of(lambda: act(400))

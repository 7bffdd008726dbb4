"""Matches of stored arrays with those of a destination, and the patterns that move them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.checkout.matching import matches, patterns
from ckptstore.documents.entry import Entry
from ckptstore.state.rename import Rename

part = st.sampled_from(
    ["a", "b", "layer", "0", "1", "10", "weight", "module", "fc1", "x_y", "(", "\\"]
)
path = st.lists(part, min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from([".", "/", "_"]).map(lambda by: by.join(parts))
)


def entries(state: dict[str, Any]) -> dict[str, Entry]:
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    checkpoint = repo.commit(state)
    listed = (page.entries for page in repo._catalog.pages(checkpoint._manifest))
    return {entry.path: entry for page in listed for entry in page}


@given(st.lists(path, unique=True, min_size=1, max_size=8), st.data())
def test_patterns_move_what_they_should_and_nothing_else(paths: list[str], data: Any) -> None:
    count = data.draw(st.integers(0, len(paths)))
    others = paths[count:]
    new = st.lists(path, unique=True, min_size=count, max_size=count)
    news = data.draw(new.filter(lambda news: not {*news} & {*others}))
    moves = dict(zip(paths[:count], news, strict=True))
    found = Rename.of(patterns(moves, others)).names(paths).arrays
    assert found == {**{path: path for path in others}, **moves}


@given(st.lists(path, unique=True, min_size=3, max_size=8), st.integers(1, 7))
def test_a_pattern_for_a_prefix_leaves_others_with_it_alone(names: list[str], count: int) -> None:
    moves = {f"m.{name}": f"n.{name}" for name in names[:count]}
    others = [f"m.{name}" for name in names[count:]]
    found = Rename.of(patterns(moves, others)).names([*moves, *others]).arrays
    assert found == {**moves, **{path: path for path in others}}


@given(st.lists(path, unique=True, min_size=2, max_size=8), path)
def test_one_prefix_is_one_pattern(paths: list[str], prefix: str) -> None:
    for add in (True, False):
        new = {name: f"{prefix}./{name}" for name in paths}
        moves = new if add else {name: old for old, name in new.items()}
        assert len(patterns(moves, [])) == 1


@given(st.lists(path, unique=True, min_size=1, max_size=8), path)
def test_a_prefix_is_found_whatever_the_names(paths: list[str], prefix: str) -> None:
    stored = entries({f"{prefix}!{number}": np.arange(3) for number in range(len(paths))})
    stored = {
        f"{prefix}./{path}": entry for path, entry in zip(paths, stored.values(), strict=True)
    }
    wanted = {path: np.zeros(3, int) for path in paths}
    assert matches(stored, wanted) == {f"{prefix}./{path}": path for path in paths}


@given(st.integers(0, 10**9))
def test_equal_bytes_count_more_than_names(seed: int) -> None:
    random = np.random.default_rng(seed)
    old = [f"layer.{n}.weight" for n in range(6)]
    new = [f"block.{n}.weight" for n in random.permutation(6)]
    sizes = [5, 5, 5, 9000, 9000, 9000]
    arrays = {name: random.normal(size=n) for name, n in zip(old, sizes, strict=True)}
    moves = dict(zip(old, new, strict=True))
    wanted = {moves[name]: array.copy() for name, array in arrays.items()}
    assert matches(entries(arrays), wanted) == moves


def test_arrays_of_one_value_are_equal_by_chance() -> None:
    stored = entries({"a.bias": np.arange(3.0), "other": np.zeros(3)})
    assert matches(stored, {"b.bias": np.zeros(3)}) == {"a.bias": "b.bias"}
    stored = entries({"a.bias": np.arange(40_000.0), "other": np.ones(40_000)})
    assert matches(stored, {"b.bias": np.ones(40_000)}) == {"a.bias": "b.bias"}


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (["a.weight", "b.weight"], ["c.weight"]),
        (["a.weight"], ["b.weight", "c.weight"]),
        (["a.weight", "b.weight"], ["c.weight", "d.weight"]),
        (["kernel"], ["weight"]),
    ],
)
def test_nothing_is_guessed(stored: list[str], wanted: list[str]) -> None:
    saved = entries({path: np.arange(3) for path in stored})
    assert matches(saved, {path: np.zeros(3, int) for path in wanted}) == {}


def test_of_the_same_end_the_same_beginning_counts() -> None:
    parts = ("online_model", "ema_model")
    saved = entries({f"ema.{part}.0.w": np.arange(3) for part in parts})
    wanted = {f"ema.{part}.module.0.w": np.zeros(3, int) for part in parts}
    assert matches(saved, wanted) == {f"ema.{p}.0.w": f"ema.{p}.module.0.w" for p in parts}
    assert matches(saved, {"ema.0.w": np.zeros(3, int)}) == {}


def test_what_is_equal_twice_is_told_apart_by_its_name() -> None:
    saved = entries({"a.0.weight": np.arange(3), "a.1.weight": np.arange(3)})
    wanted = {"b.0.weight": np.arange(3), "b.1.weight": np.arange(3)}
    assert matches(saved, wanted) == {"a.0.weight": "b.0.weight", "a.1.weight": "b.1.weight"}


def test_only_the_same_dtype_and_shape_match() -> None:
    saved = entries({"a.weight": np.arange(3)})
    assert matches(saved, {"b.weight": np.zeros(3)}) == {}
    assert matches(saved, {"b.weight": np.zeros(4, int)}) == {}

"""What goes in comes out: any state, bit for bit, fresh and writable."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.state.flatten import flatten, unflatten
from ckptstore.state.selection import Selection
from ckptstore.testing.strategies import arrays, states
from tests.helpers.equality import bits, difference

if TYPE_CHECKING:
    from pathlib import Path

SMALL_CHUNKS = 64 << 10


def repository() -> ckptstore.Repository:
    return ckptstore.init("memory://", chunk_size=SMALL_CHUNKS)


def leaves_of(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves_of(value)]
    if isinstance(state, list | tuple) and not isinstance(state, torch.Size):
        return [leaf for value in state for leaf in leaves_of(value)]
    return [state]


def is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


@given(states())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_state_comes_back_bit_for_bit(state: Any) -> None:
    before = [bits(leaf) for leaf in leaves_of(state)]
    repo = repository()
    repo.commit(state)
    assert difference(state, repo.checkout()) is None
    assert [bits(leaf) for leaf in leaves_of(state)] == before
    assert repo.verify().ok


@given(states(max_leaves=6))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_comes_out_is_fresh_and_writable(state: Any) -> None:
    """Writing over all of it changes neither the repository nor what another checkout gave."""
    repo = repository()
    repo.commit(state)
    first, second = repo.checkout(), repo.checkout()
    for leaf in leaves_of(first):
        if isinstance(leaf, torch.Tensor):
            leaf.reshape(-1).view(torch.uint8).fill_(1)
            assert not leaf.requires_grad
        elif isinstance(leaf, np.ndarray):
            leaf.reshape(-1).view(np.uint8)[:] = 1
            assert leaf.flags.writeable
    assert difference(state, second) is None
    assert difference(state, repo.checkout()) is None


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_keeps_all_bit_patterns_of_its_first_two_bytes(dtype: str) -> None:
    """So every NaN, infinity and denormal of the small floats, and -0.0 of all."""
    size = ITEM_BYTES[dtype]
    patterns = np.zeros((65536, max(size, 2)), dtype=np.uint8)
    patterns[:, -1], patterns[:, -2] = np.divmod(np.arange(65536), 256)
    if dtype == "bool":
        patterns &= 1
    tensor = torch.from_numpy(patterns).reshape(-1).view(getattr(torch, dtype))
    repo = repository()
    repo.commit({"large": tensor, "small": tensor[:300], "one": tensor[7]})
    found = repo.checkout()
    assert difference({"large": tensor, "small": tensor[:300], "one": tensor[7]}, found) is None


@given(st.lists(arrays(), min_size=1, max_size=5), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_committed_state_fills_another_one_of_the_same_kind_in_place(
    values: list[Any], data: st.DataObject
) -> None:
    """Into arrays of the same dtype and shape, whatever the strides of either side."""
    state = {"arrays": [copy.deepcopy(value) for value in values], "step": 3}
    repo = repository()
    repo.commit(state)
    target = {"arrays": [_blank(value) for value in values], "step": 0}
    before = [id(value) for value in target["arrays"]]
    assert not repo.checkout(into=target)
    assert difference(state, target) is None
    assert [id(value) for value in target["arrays"]] == before


def _blank(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        raw = torch.zeros(value.numel() * value.element_size(), dtype=torch.uint8)
        return raw.view(value.dtype).reshape(value.shape)
    return np.zeros(value.shape[::-1], value.dtype).T


@given(states(max_leaves=20), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_include_and_exclude_choose_as_a_walk_over_the_paths_says(
    state: Any, data: st.DataObject
) -> None:
    """The arrays that come out are those whose paths match; nothing that was chosen is missing."""
    repo = repository()
    checkpoint = repo.commit(state)
    paths = [array.path for array in checkpoint.arrays]
    if not paths:
        return
    chosen = data.draw(st.sampled_from(paths))
    literal = "/".join(_literal(part) for part in chosen.split("/"))
    expected = [path for path in paths if path == chosen or path.startswith(f"{chosen}/")]
    found = repo.checkout(include=literal)
    assert sum(map(is_array, leaves_of(found))) == len(expected)
    everything_else = Selection.of(None, literal)
    rest = [path for path in paths if everything_else(path)]
    assert sorted([*rest, *expected]) == sorted(paths)


def _literal(part: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in part)


def test_tied_arrays_come_out_tied_and_arrays_that_are_only_equal_do_not() -> None:
    """As one tensor under both names, for small ones too and with only one name selected."""
    large, small = torch.randn(300, 300), torch.randn(4)
    state = {"a": large, "b": {"c": large, "d": small}, "e": small, "twin": large.clone()}
    repo = repository()
    repo.commit(state)
    found = repo.checkout()
    assert found["a"] is found["b"]["c"]
    assert found["e"] is found["b"]["d"]
    assert found["twin"] is not found["a"]
    assert repo.usage().stored_bytes < 1.2 * large.nbytes
    assert torch.equal(repo.checkout(include="b/c")["b"]["c"], large)
    assert torch.equal(repo.checkout(exclude="a")["b"]["c"], large)


def test_a_state_may_be_one_array_or_one_value() -> None:
    repo = repository()
    for state in (torch.arange(3), np.arange(3), 5, None, [], {}, (), "text"):
        repo.commit(state)
        assert difference(state, repo.checkout()) is None


@given(states(max_leaves=8))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_committing_the_same_again_stores_nothing(state: Any) -> None:
    repo = repository()
    repo.commit(state)
    assert repo.commit(state).new_bytes == 0


def test_only_what_is_chosen_is_read(tmp_path: Path) -> None:
    """Every other chunk may be gone."""
    repo = ckptstore.init(tmp_path / "store", chunk_size=SMALL_CHUNKS)
    state = {"model": {"w": np.arange(100_000)}, "optimizer": {"m": -np.arange(100_000.0)}}
    repo.commit(state)
    wanted = {array.path: array for array in repo.resolve("main").arrays}
    assert wanted["model/w"].chunk_count == 13
    for path in (tmp_path / "store" / "objects").glob("*/*"):
        if path.stat().st_size > 30_000 and np.fromfile(path, np.int64)[1] < 0:
            path.unlink()
    with pytest.raises(ckptstore.CorruptError, match="missing"):
        ckptstore.open(tmp_path / "store").checkout()
    found = ckptstore.open(tmp_path / "store").checkout(include="model")
    assert difference({"model": state["model"]}, found) is None


def test_flatten_and_unflatten_never_share_containers_with_the_state() -> None:
    state = {"a": [1, {"b": (2,)}], "c": bytearray(b"x")}
    flat = flatten(state, describe=lambda value: None, encode=lambda value: None)
    again = unflatten(flat.root, array=lambda path, kind: None, decode=lambda n, v: v)
    again["a"][1]["b"] = again["c"][:] = b""
    assert state == {"a": [1, {"b": (2,)}], "c": bytearray(b"x")}

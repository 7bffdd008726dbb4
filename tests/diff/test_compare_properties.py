"""A diff of any two states equals a comparison leaf by leaf, in double precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.documents import structure
from ckptstore.documents.nodes import ArrayNode
from ckptstore.state import tree
from ckptstore.state.flatten import flatten, unflatten
from ckptstore.testing.strategies import plain_values, states

SMALL_CHUNKS = 64 << 10
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
Content = tuple[str, tuple[int, ...], bytes]


def repository() -> ckptstore.Repository:
    return ckptstore.init("memory://", chunk_size=SMALL_CHUNKS)


def model(state: Any) -> tuple[dict[str, Content], dict[str, str], str]:
    """Arrays by path with all bytes, plain values by path, and the structure."""
    flat = flatten(state, describe=arrays.describe, encode=codecs.encode)
    found = {
        path: (source.dtype, source.shape, bytes(source.whole()))
        for path, source in flat.arrays.items()
    }
    values = {
        path: repr(structure.to_json(node))
        for path, node in tree.leaves(flat.root)
        if not isinstance(node, ArrayNode)
    }
    return found, values, repr(structure.to_json(flat.root))


def is_empty_container(value: object) -> bool:
    return isinstance(value, list | tuple | dict) and not value


def small_arrays() -> st.SearchStrategy[Any]:
    """Few different arrays, so that many are equal, moved or retyped."""
    return st.builds(
        lambda fill, dtype, shape: np.full(shape, fill, dtype),
        st.integers(0, 2),
        st.sampled_from(["f4", "f8", "i4"]),
        st.sampled_from([(3,), (3, 1), (0,), (), (30_000,), (9_000, 5)]),
    )


def alike() -> st.SearchStrategy[Any]:
    """States with few different keys and leaves."""
    values = st.sampled_from([0, 1, 1.0, True, None, "a", (), []])
    return st.dictionaries(
        st.sampled_from(["a", "b", "c", 0, "0"]),
        st.dictionaries(st.sampled_from(["w", "b.w", "x"]), small_arrays() | values, max_size=3)
        | small_arrays()
        | values
        | st.lists(small_arrays() | values, max_size=2),
        max_size=4,
    )


@given(alike() | states(max_leaves=6), alike() | states(max_leaves=6))
@settings(suppress_health_check=SLOW)
def test_a_diff_says_what_a_comparison_of_all_leaves_says(one: Any, other: Any) -> None:
    repo = repository()
    first, second = repo.commit(one).id, repo.commit(other).id
    found = repo.diff(first, second)
    (before, values, root), (after, other_values, other_root) = model(one), model(other)
    both = before.keys() & after.keys()
    kinds = {
        path: "retyped" if before[path][:2] != after[path][:2] else "changed"
        for path in both
        if before[path] != after[path]
    }
    assert {c.path: c.kind for c in (*found.changed, *found.retyped)} == kinds
    assert found.unchanged == len(both) - len(kinds)
    assert not found.undecided
    gone = {path: before[path] for path in before.keys() - both}
    new = {path: after[path] for path in after.keys() - both}
    for change in found.moved:
        assert change.before
        assert gone.pop(change.before.path) == new.pop(change.path)
    assert {change.path for change in found.removed} == gone.keys()
    assert {change.path for change in found.added} == new.keys()
    assert not {c for c in gone.values() if c[2]} & {c for c in new.values() if c[2]}
    said = {
        change.path
        for change in found.values
        if not is_empty_container(change.before) and not is_empty_container(change.after)
    }
    differing = {
        path
        for path in values.keys() | other_values.keys()
        if values.get(path) != other_values.get(path)
    }
    assert said <= differing
    assert differing <= {change.path for change in found.values}
    assert found.is_empty == (root == other_root and before == after)
    assert found.bytes_before == sum(len(data) for _, _, data in before.values())
    assert found.bytes_after == sum(len(data) for _, _, data in after.values())
    assert 0 <= found.shared_bytes <= found.bytes_after


@given(states())
@settings(suppress_health_check=SLOW)
def test_a_state_differs_in_nothing_from_itself(state: Any) -> None:
    repo = repository()
    repo.commit(state)
    repo.commit(copy.deepcopy(state))
    for numeric in (False, True):
        found = repo.diff("main~1", "main", numeric=numeric)
        assert found.is_empty
        assert (found.shared, found.unchanged) == (1.0, len(model(state)[0]))
    if not isinstance(state, str):  # which would name a revision
        assert repo.diff("main", state).is_empty


@given(alike(), alike(), st.sampled_from(["a", "b", "**/w", "*/x", "0"]), st.booleans())
@settings(suppress_health_check=SLOW)
def test_a_selected_diff_is_the_selected_part_of_the_diff(
    one: Any, other: Any, glob: str, excluded: bool
) -> None:
    """All but moves: of one side of a move that is not chosen, the other is added or removed."""
    from ckptstore.state.selection import Selection

    repo = repository()
    first, second = repo.commit(one).id, repo.commit(other).id
    choice = {"exclude" if excluded else "include": glob}
    chosen = Selection.of(choice.get("include"), choice.get("exclude"))
    whole, part = repo.diff(first, second), repo.diff(first, second, **choice)
    apart = ("moved", "added", "removed")
    assert [c for c in part.arrays if c.kind not in apart] == [
        replaced
        for c in whole.arrays
        if c.kind not in apart and chosen(c.path)
        for replaced in [next(p for p in part.arrays if p.path == c.path and p.kind == c.kind)]
    ]
    assert list(map(repr, part.values)) == [repr(c) for c in whole.values if chosen(c.path)]
    assert part.rearranged == tuple(filter(chosen, whole.rearranged))
    paths = {p for p in model(other)[0] if chosen(p)} & {p for p in model(one)[0] if chosen(p)}
    differing = [c for c in part.arrays if c.kind in ("changed", "retyped")]
    assert part.unchanged == len(paths) - len(differing)


@given(
    st.sampled_from(["f2", "f4", "f8", "c8", "c16", "i1", "u1", "i4", "u8", "?"]),
    st.sampled_from([1, 5, 1000, 1023, 1025, 16_384, 16_385, 70_001]),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.sampled_from([SMALL_CHUNKS, 100_000, 1 << 20]),
)
@example("f4", 70_001, 0, 0.0, 100_000)
def test_the_numbers_are_those_of_doubles(
    dtype: str, count: int, seed: int, kept: float, other_chunk: int
) -> None:
    numbers = np.random.default_rng(seed)
    one, other = ((numbers.standard_normal(count) * 50).astype(dtype) for _ in range(2))
    if np.dtype(dtype).kind in "iub":
        one, other = (numbers.integers(0, 2, count).astype(dtype) * 9 for _ in range(2))
        one, other = one.astype(dtype), other.astype(dtype)
    stay = int(kept * count)
    other[:stay] = one[:stay]
    before, after = repository(), ckptstore.init("memory://", chunk_size=other_chunk)
    before.commit({"x": one})
    after.commit({"x": other})
    found = before.diff("main", "main", numeric=True, other=after)
    if one.tobytes() == other.tobytes():
        assert found.is_empty
        return
    (change,) = found.changed
    assert change.numbers
    _check(change.numbers, one, other)


def _check(found: ckptstore.Numbers, one: Any, other: Any) -> None:
    a, b = (array.astype("c16") for array in (one, other))
    norms = [float(np.linalg.norm(array)) for array in (a, b, b - a)]
    expected = {
        "norm_before": norms[0],
        "norm_after": norms[1],
        "relative_l2": norms[2] / norms[0] if norms[0] else math.inf if norms[2] else 0.0,
        "max_abs": float(np.abs(b - a).max()),
        "changed_share": np.count_nonzero(a != b) / len(a),
        "new_nan": 0,
        "new_inf": 0,
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-6), name
    if norms[0] and norms[1]:
        cosine = float(np.vdot(a, b).real) / (norms[0] * norms[1])
        assert found.cosine == pytest.approx(cosine, abs=2e-6)
    else:
        assert math.isnan(found.cosine)


@given(states(max_leaves=6), plain_values())
@settings(suppress_health_check=SLOW)
def test_any_bits_can_be_measured(state: Any, value: Any) -> None:
    """Signalling NaNs, infinities, denormals: no error, no warning, exact counts."""
    repo = repository()
    repo.commit({"x": state, "y": value})
    flipped = {"x": _flipped(state), "y": value}
    found = repo.diff("main", flipped, numeric=True)
    for change in found.changed:
        assert change.numbers
        assert change.before
        count = math.prod(change.before.shape)
        assert 0 < change.numbers.changed_share <= 1
        assert 0 <= change.numbers.new_nan + change.numbers.new_inf <= count
        assert change.numbers.norm_before >= 0
        assert not math.isnan(change.numbers.relative_l2)


def _flipped(state: Any) -> Any:
    """The same state with every array's first byte changed, where it has one."""
    flat = flatten(state, describe=arrays.describe, encode=codecs.encode)
    made = {}
    for path, source in flat.arrays.items():
        data = bytearray(source.whole())
        if data:
            data[0] ^= 1
        made[path] = arrays.from_bytes(source.kind, source.dtype, source.shape, memoryview(data))
    return unflatten(flat.root, array=lambda path, kind: made[path], decode=codecs.decode)

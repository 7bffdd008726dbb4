"""Tied arrays: one array in the state is one array in the checkout, and no others."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.state import tree
from ckptstore.testing.strategies import arrays, states
from tests.helpers.equality import difference
from tests.helpers.ties import arrays_of, literal, same_ties


@given(st.lists(arrays(), min_size=1, max_size=3), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_the_same_array_twice_in_a_state_comes_out_as_one(
    pool: list[Any], data: st.DataObject
) -> None:
    """Also with only some of its names chosen, and under another name of the same memory."""
    state = data.draw(states(leaves=st.sampled_from(pool) | st.none(), max_leaves=10))
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    made = repo.commit(state)
    found = repo.checkout()
    assert difference(state, found) is None
    assert same_ties(arrays_of(state), arrays_of(found))
    if made.arrays:
        left_out = data.draw(st.sampled_from(made.arrays)).path
        kept = [
            array
            for array, info in zip(arrays_of(state), in_order(made), strict=True)
            if info != left_out
        ]
        chosen = [path for path in in_order(made) if path != left_out]
        if chosen:
            part = arrays_of(repo.checkout(include=[literal(path) for path in chosen]))
            assert difference(kept, part) is None
            assert same_ties(kept, part)


def in_order(made: ckptstore.Checkpoint) -> list[str]:
    """The paths of the arrays in the order of the state."""
    root = made._catalog.structure(made._manifest)
    return [node.path for node in tree.arrays(root)]

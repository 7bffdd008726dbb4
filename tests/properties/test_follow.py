"""A model that is kept up to date equals the checkpoint after every update, and what was read is what differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.format.chunks import chunks
from ckptstore.testing.strategies import arrays
from tests.properties.same import bits, difference

CHUNK = 64 << 10
N = 40_000  # three chunks of float32, of which the last is short; two of bfloat16
SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int]]:
    """A few places that change between two checkpoints."""
    place = st.tuples(st.sampled_from(["large", "tied", "small", "half"]), st.integers(0, N - 1))
    return draw(st.lists(place, max_size=4))


@given(
    st.lists(st.tuples(changes(), st.booleans()), min_size=1, max_size=6),
    st.dictionaries(st.sampled_from("abc"), arrays(), max_size=3),
)
@SETTINGS
def test_a_model_equals_the_checkpoint_after_every_update(
    series: list[tuple[list[tuple[str, int]], bool]], others: dict[str, Any]
) -> None:
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    tied = torch.zeros(N)
    state: dict[str, Any] = {
        "large": torch.zeros(N),
        "tied": tied,
        "again": tied,
        "half": torch.zeros(N, dtype=torch.bfloat16),
        "small": np.zeros(15),
        "scalar": torch.tensor(1.5),
        "empty": np.zeros((0, 3)),
        **others,
    }
    both = torch.ones(N)
    target: dict[str, Any] = {
        "large": torch.ones(N, 2)[:, 1],
        "tied": both,
        "again": both,
        "half": torch.ones(N, dtype=torch.bfloat16),
        "small": np.ones(30)[::2],
        "scalar": torch.tensor(0.0),
        "empty": np.ones((0, 3)),
        **{
            key: value.copy() if isinstance(value, np.ndarray) else value.clone()
            for key, value in others.items()
        },
    }
    repo.commit(state)
    follower = repo.follow()
    follower.update(target)
    held = {key: bits(value) for key, value in state.items()}
    for number, (changed, is_followed) in enumerate(series, start=1):
        for name, place in changed:
            state[name][place % len(state[name])] = number
        repo.commit(state)
        if is_followed:
            update = follower.update(target)
            assert update is not None
            assert difference(state, target) is None
            assert target["tied"] is target["again"]
            assert update.read_bytes == expected_bytes(held, state)
            held = {key: bits(value) for key, value in state.items()}


def expected_bytes(held: dict[str, Any], state: dict[str, Any]) -> int:
    """The chunks in which a state differs from what was held; tied arrays count once."""
    total = 0
    for name in ("large", "tied", "half"):
        value = state[name]
        if value.nbytes < CHUNK:  # one piece of a bundle
            total += value.nbytes * (held[name] != bits(value))
            continue
        rows = CHUNK // value.element_size()
        for chunk in chunks((N,), (rows,), item_bytes=value.element_size()):
            before, after = raw(held[name])[chunk.start :], raw(bits(value))[chunk.start :]
            total += chunk.size * (before[: chunk.size] != after[: chunk.size])
    return total + state["small"].nbytes * (held["small"] != bits(state["small"]))


def raw(found: Any) -> bytes:
    """The bytes alone of what `bits` gives."""
    return found if isinstance(found, bytes) else next(p for p in found if isinstance(p, bytes))

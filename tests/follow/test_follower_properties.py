"""A followed model equals each checkpoint, and only differing bytes were read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ckptstore.documents.chunks import chunks
from ckptstore.follow import refill
from ckptstore.follow.known import Known
from ckptstore.testing.strategies import arrays
from tests.helpers.counting_storage import CHUNK_BYTES, CountingStorage, repository
from tests.helpers.equality import bits, difference

N = 40_000  # three chunks of float32, of which the last is short; two of bfloat16
LARGE = ("large", "tied", "half")
SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
Series = list[tuple[list[tuple[str, int]], bool]]


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, int]]:
    """A few places that change between two checkpoints: often at the edge of a chunk."""
    edge = CHUNK_BYTES // 4
    positions = st.sampled_from([0, edge - 1, edge, 2 * edge - 1, 2 * edge, N - 1])
    place = st.tuples(
        st.sampled_from(["large", "tied", "half", "small"]), positions | st.integers(0, N - 1)
    )
    return draw(st.lists(place, max_size=4))


SERIES = st.lists(st.tuples(changes(), st.booleans()), min_size=1, max_size=6)


@given(SERIES, st.dictionaries(st.sampled_from("abc"), arrays(), max_size=3))
@SETTINGS
def test_a_nest_equals_the_checkpoint_after_every_update(
    series: Series, others: dict[str, Any]
) -> None:
    follow_nest(series, others)


def follow_nest(series: Series, others: dict[str, Any]) -> None:
    """Commit a series of changes, and follow some of it."""
    storage = CountingStorage()
    repo = repository(storage)
    tied, both = torch.zeros(N), torch.ones(N)
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
    target: dict[str, Any] = {
        "large": torch.ones(N, 2)[:, 1],
        "tied": both,
        "again": both,
        "half": torch.ones(2 * N, dtype=torch.bfloat16)[::2],
        "small": np.ones(30)[::2],
        "scalar": torch.tensor(0.0),
        "empty": np.ones((0, 3)),
        **{name: empty_like(value) for name, value in others.items()},
    }
    repo.commit(state)
    follower, held = repo.follow(), None
    for number, (changed, is_followed) in enumerate([([], True), *series, ([], True)]):
        for name, place in changed:
            state[name][place % len(state[name])] = number
        made = repo.commit(state)
        if is_followed:
            storage.forget()
            update = follower.update(target)
            assert update is not None
            assert update.checkpoint.id == made.id
            assert difference(state, target) is None
            assert target["tied"] is target["again"]
            assert update.read_bytes == storage.read_bytes
            if held is not None:
                (page,) = repo._catalog.pages(made._manifest)
                assert update.read_bytes == expected_bytes(held, state, page.bundle.size)
            held = {key: bits(value) for key, value in state.items()}


def expected_bytes(held: dict[str, Any], state: dict[str, Any], bundle_bytes: int) -> int:
    """The chunks in which a state differs from what was held; tied arrays count once."""
    total = 0
    for name in LARGE:
        before, after, item = raw(held[name]), raw(bits(state[name])), state[name].element_size()
        for chunk in chunks((N,), (CHUNK_BYTES // item,), item_bytes=item):
            part = slice(chunk.start, chunk.start + chunk.size)
            total += chunk.size * (before[part] != after[part])
    small = state["small"].nbytes * (held["small"] != bits(state["small"]))
    return total + (small if 2 * small < bundle_bytes else bundle_bytes)


def raw(found: Any) -> bytes:
    """The bytes alone of what `bits` gives."""
    return found if isinstance(found, bytes) else next(p for p in found if isinstance(p, bytes))


def empty_like(value: Any) -> Any:
    """Memory for an array, of the same kind."""
    if isinstance(value, np.ndarray):
        return np.zeros(value.shape, value.dtype)
    return torch.zeros(value.nbytes, dtype=torch.uint8).view(value.dtype).reshape(value.shape)


class Model(nn.Module):
    """Tied weights, several dtypes and sizes, a transposed weight, and a value of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(150, 150)
        self.tied = nn.Linear(150, 150, bias=False)
        self.tied.weight = self.first.weight
        self.brain = nn.Linear(200, 300, dtype=torch.bfloat16)
        self.brain.weight = nn.Parameter(torch.zeros(200, 300, dtype=torch.bfloat16).T)
        self.norm = nn.BatchNorm1d(150)
        self.count = 0

    def get_extra_state(self) -> int:
        """A plain value."""
        return self.count

    def set_extra_state(self, state: int) -> None:
        """Take it."""
        self.count = state


NAMES = st.sampled_from(
    [
        "first.weight",
        "first.bias",
        "brain.weight",
        "brain.bias",
        "norm.running_mean",
        "norm.num_batches_tracked",
    ]
)


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAMES, st.integers(0, 10**6)), max_size=3),
            st.sampled_from(["update", "update ema", "none", "replace", "forget"]),
        ),
        min_size=1,
        max_size=6,
    )
)
@SETTINGS
def test_a_module_equals_the_checkpoint_after_every_update(
    series: list[tuple[list[tuple[str, int]], str]],
) -> None:
    """Anything between two updates: several checkpoints, other parts, other memory."""
    storage = CountingStorage()
    repo = repository(storage)
    model, average, served = Model(), Model(), Model()
    follower = repo.follow()
    for number, (changed, event) in enumerate(series):
        for name, place in changed:
            for one in (model, average):
                tensor = one.state_dict()[name]
                tensor[tuple(np.unravel_index(place % tensor.numel(), tensor.shape))] = number
        model.count = number
        repo.commit({"model": model.state_dict(), "ema": average.state_dict(), "step": number})
        if event == "none":
            continue
        if event == "replace":
            served.norm = nn.BatchNorm1d(150)
        elif event == "forget":
            with torch.no_grad():
                served.brain.bias.add_(1)
            follower.forget(served)
        expected, part = (average, "ema") if event == "update ema" else (model, "model")
        storage.forget()
        update = follower.update(served, part=part)
        assert update is not None
        assert difference(dict(expected.state_dict()), dict(served.state_dict())) is None
        assert served.tied.weight is served.first.weight
        assert update.read_bytes == storage.read_bytes


def test_the_property_would_notice_a_chunk_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = refill.changes_of
    monkeypatch.setattr(refill, "changes_of", lambda *args: real(*args)[:-1])
    with pytest.raises(AssertionError):
        follow_nest([([("large", 5), ("large", N - 1)], True)], {})


def test_the_property_would_notice_what_is_read_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Known, "entry", lambda memory, key: None)
    with pytest.raises(AssertionError):
        follow_nest([([("large", 5)], True)], {})

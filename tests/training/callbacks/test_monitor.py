"""What a metric's value says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptstore import InvalidInputError
from ckptstore.training.callbacks import (
    CallbackList,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from ckptstore.training.callbacks.monitor import (
    check_mode,
    direction,
    improves,
    metrics_of,
    number,
    plain,
)

floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        np.float32(2),
        np.int64(2),
        np.array(2.0),
        torch.tensor(2.0),
        torch.tensor(2, dtype=torch.int8),
        torch.tensor(2.0, requires_grad=True),
        torch.tensor(2.0, dtype=torch.bfloat16),
    ],
    ids=lambda value: (
        type(value).__name__
        + str(getattr(value, "dtype", ""))
        + str(getattr(value, "requires_grad", ""))
    ),
)
def test_whatever_is_one_number_is_read_as_a_float(value):
    assert number(value) == 2.0
    assert type(number(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        None,
        "2",
        np.array([2.0]),
        torch.ones(3),
        [2],
        10**400,
        1j,
        np.str_("a"),
        object(),
        torch.tensor(1j),
    ],
    ids=[str(place) for place in range(10)],
)
def test_what_is_not_one_number_is_none(value):
    assert number(value) is None


def test_true_counts_as_one():
    assert (number(True), number(np.bool_(False))) == (1.0, 0.0)


@given(floats, floats, st.sampled_from(["min", "max"]))
def test_nothing_is_better_than_itself_and_of_two_only_one_is(one, other, mode):
    assert not improves(one, one, mode=mode)
    if one != other:
        assert improves(one, other, mode=mode) != improves(other, one, mode=mode)


@given(floats, st.none() | st.floats(), st.sampled_from(["min", "max"]))
def test_nan_is_never_better(one, reference, mode):
    assert not improves(math.nan, reference, mode=mode)
    assert improves(one, None, mode=mode)


@given(floats, floats, st.floats(0, 1e6), st.sampled_from(["min", "max"]))
def test_a_greater_delta_asks_for_more(one, other, delta, mode):
    if improves(one, other, mode=mode, min_delta=delta):
        assert improves(one, other, mode=mode)


@pytest.mark.parametrize(
    ("monitor", "mode", "known", "expected"),
    [
        ("val_loss", "auto", {}, "min"),
        ("loss", "auto", {}, "min"),
        ("val_acc", "auto", {}, "max"),
        ("macro_f1", "auto", {}, "max"),
        ("perplexity", "auto", {}, "min"),
        ("val_perplexity", "auto", {"perplexity": "max"}, "max"),
        ("val_loss", "auto", {"loss": "max"}, "max"),
        ("val_anything", "auto", {"anything": "max"}, "max"),
        ("val_acc", "min", {"acc": "max"}, "min"),
        ("val_loss", "max", {}, "max"),
    ],
)
def test_the_direction_of_a_metric(monitor, mode, known, expected):
    assert direction(monitor, mode, known) == expected


def test_a_mode_that_is_none_is_an_error():
    for mode, close in {"maximum": "max", "Minimize": "min", "mni": "min", "autos": "auto"}.items():
        with pytest.raises(
            InvalidInputError, match=rf"auto, min or max is expected. Did you mean {close}\?$"
        ):
            check_mode(mode)
    with pytest.raises(InvalidInputError, match=r"auto, min or max is expected\.$"):
        check_mode("")


@pytest.mark.parametrize("mode", ["Auto", "AUTO", "MAX", "Min"])
def test_the_case_of_a_mode_does_not_matter(mode):
    assert EarlyStopping("loss", mode=mode).mode == mode.lower()
    assert ModelCheckpoint("memory://", mode=mode).mode == mode.lower()
    assert ReduceLROnPlateau("loss", mode=mode).mode == mode.lower()


def test_logs_become_plain():
    logs = {"a": torch.tensor(1.0), "b": {"c": np.float32(2), "d": "text"}, "e": np.ones(2)}
    found = plain(logs)
    assert (found["a"], found["c"], found["d"]) == (1.0, 2.0, "text")
    assert metrics_of(logs | {"": 1.0, "x" * 300: 1.0, "new\nline": 2.0, 3: 4.0}) == {
        "a": 1.0,
        "c": 2.0,
    }
    assert plain(None) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda store: EarlyStopping("depth"),
        lambda store: ReduceLROnPlateau("depth"),
        lambda store: ModelCheckpoint(store, monitor="depth", save_best_only=True),
    ],
    ids=["EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint"],
)
def test_a_metric_of_unknown_direction_is_refused_before_the_first_epoch(make, tmp_path):
    callbacks = CallbackList([make(tmp_path / "store")], model=torch.nn.Linear(1, 1))
    with pytest.raises(InvalidInputError, match="depth:max or depth:min in a text, mode='max'"):
        callbacks.on_train_begin()


def test_a_metric_that_decides_nothing_needs_no_direction(tmp_path):
    model = torch.nn.Linear(1, 1)
    callbacks = CallbackList([ModelCheckpoint(tmp_path / "store", monitor="depth")], model=model)
    callbacks.on_train_begin()

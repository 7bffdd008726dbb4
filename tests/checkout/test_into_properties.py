"""Checkout into existing arrays: in place for any strides; a mismatch changes nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.testing.strategies import arrays
from tests.helpers.equality import bits, difference

SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
NAMED = st.dictionaries(st.sampled_from("abcdef"), arrays(), min_size=1, max_size=4)


def committed(state: Any) -> ckptstore.Repository:
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(state)
    return repo


@st.composite
def blanks(draw: st.DrawFn, like: Any) -> Any:
    """An array of the same dtype and shape, of other values and often of other strides."""
    layout = draw(st.sampled_from(["contiguous", "turned", "every second", "backwards"]))
    axes = tuple(reversed(range(like.ndim)))
    if isinstance(like, np.ndarray):
        if layout == "every second":
            return np.ones((*like.shape, 2), like.dtype)[..., 1]
        made = np.ones(like.shape[::-1], like.dtype).transpose(axes)
        return made[::-1] if layout == "backwards" and made.ndim else made
    item = like.element_size()
    if layout == "every second":
        raw = torch.ones(2 * like.numel() * item, dtype=torch.uint8).view(like.dtype)
        return raw.as_strided(like.shape, [2 * s for s in torch.empty(like.shape).stride()])
    raw = torch.ones(like.numel() * item, dtype=torch.uint8).view(like.dtype)
    if layout == "turned":
        return raw.reshape(like.shape[::-1]).permute(axes)
    made = raw.reshape(like.shape)
    return made.conj() if layout == "backwards" and made.dtype is torch.complex64 else made


@given(NAMED, st.data())
@SETTINGS
def test_arrays_are_filled_where_they_lie_whatever_their_strides(
    state: dict[str, Any], data: st.DataObject
) -> None:
    target = {key: data.draw(blanks(value)) for key, value in state.items()}
    before = {key: (id(value), where(value)) for key, value in target.items()}
    assert not committed(state).checkout(into=target)
    for key, value in state.items():
        assert bits(target[key]) == bits(value)
        assert (id(target[key]), where(target[key])) == before[key]


def where(array: Any) -> object:
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"], array.strides
    return array.data_ptr(), array.stride()


@given(NAMED, st.sampled_from(["missing", "unexpected", "shape", "dtype", "kind"]), st.data())
@SETTINGS
def test_after_a_misfit_nothing_has_changed_and_without_strict_only_the_misfit_has_not(
    state: dict[str, Any], fault: str, data: st.DataObject
) -> None:
    target = {key: data.draw(blanks(value)) for key, value in state.items()}
    key = data.draw(st.sampled_from(sorted(state)))
    if fault == "missing":
        target["new"] = torch.ones(3)
    elif fault == "unexpected":
        del target[key]
    elif fault == "shape":
        target[key] = np.ones((*state[key].shape, 2), np.float32)
    elif fault == "dtype":
        other = torch.int64 if "int64" not in str(state[key].dtype) else torch.int32
        target[key] = torch.ones(state[key].shape, dtype=other)
    else:
        target[key] = 5
    before = {name: bits(value) for name, value in target.items()}
    repo = committed(state)
    with pytest.raises(ckptstore.CheckoutMismatchError) as error:
        repo.checkout(into=target)
    assert {name: bits(value) for name, value in target.items()} == before
    found = error.value.incompatible
    assert bool(found.missing) == (fault == "missing")
    assert bool(found.unexpected) == (fault == "unexpected")
    assert bool(found.mismatched) == (fault in ("shape", "dtype", "kind"))
    with pytest.warns(UserWarning, match="restored in part"):
        assert repo.checkout(into=target, strict=False) == found
    for name, value in target.items():
        fits = name in state and not (name == key and found.mismatched)
        assert bits(value) == (bits(state[name]) if fits else before[name])


@given(NAMED)
@SETTINGS
def test_a_checkout_never_shares_memory_with_another_or_with_what_was_committed(
    state: dict[str, Any],
) -> None:
    repo = committed(state)
    first, second = repo.checkout(), repo.checkout()
    for key, value in state.items():
        spans = sorted(span(array) for array in (value, first[key], second[key]))
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end
        assert difference(first[key], second[key]) is None


def span(array: Any) -> tuple[int, int]:
    """The first and last address that an array's elements may take."""
    if isinstance(array, np.ndarray):
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        return low, high
    if not array.numel():
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(array.shape, array.stride(), strict=True))
    start = array.data_ptr()
    return start, start + (last + 1) * array.element_size()

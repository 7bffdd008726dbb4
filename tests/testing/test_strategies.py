"""The strategies for states: Hypothesis can print all that they draw."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.testing.strategies import arrays, plain_values, printable


@given(arrays() | plain_values())
def test_whatever_is_drawn_can_be_printed(value: object) -> None:
    repr(st.just(value))


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_a_scalar_of_any_dtype_can_be_printed_or_becomes_an_array(dtype: str) -> None:
    raw = torch.zeros(ITEM_BYTES[dtype], dtype=torch.uint8)
    repr(raw.view(getattr(torch, dtype)).reshape(printable(dtype, ())))

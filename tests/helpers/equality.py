"""Compares two states bit for bit: types, order, and the payload of every NaN."""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import torch


def difference(one: Any, other: Any, path: str = "state") -> str | None:
    """The first place where two states differ, or None."""
    if type(one) is torch.nn.Parameter:
        one = one.detach()
    if type(one) is not type(other):
        return f"{path}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        if [(type(key), key) for key in one] != [(type(key), key) for key in other]:
            return f"{path}: keys {list(one)} and {list(other)}"
        if isinstance(one, OrderedDict) and vars(one) != vars(other):
            return f"{path}: attributes {vars(one)} and {vars(other)}"
        return _first(difference(one[key], other[key], f"{path}[{key!r}]") for key in one)
    if isinstance(one, list | tuple) and not isinstance(one, torch.Size):
        if len(one) != len(other):
            return f"{path}: lengths {len(one)} and {len(other)}"
        pairs = enumerate(zip(one, other, strict=True))
        return _first(difference(a, b, f"{path}[{i}]") for i, (a, b) in pairs)
    return None if bits(one) == bits(other) else f"{path}: {one!r} and {other!r}"


def bits(value: Any) -> object:
    """A value that is equal for two arrays exactly if their bits are."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().resolve_conj().resolve_neg()
        if value.element_size() == 1:  # torch copies a transposed float4 only as bytes
            plain = plain.view(torch.uint8)
        copied = plain.clone(memory_format=torch.contiguous_format)
        flat = copied.as_strided((value.numel(),), (1,)).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), flat.numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype, value.shape, value.tobytes()
    if type(value) is float:
        return struct.pack("<d", value)
    if type(value) is complex:
        return struct.pack("<dd", value.real, value.imag)
    return value


def _first(found: Any) -> str | None:
    return next((text for text in found if text), None)

"""Hypothesis strategies for states: everything that a checkpoint can hold, with any bits in it.

They need hypothesis, which is part of the `dev` extra.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

from ckptstore.documents import dtypes
from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = [
    "arrays",
    "floats",
    "keys",
    "ndarrays",
    "numpy_scalars",
    "plain_values",
    "shapes",
    "states",
    "tensors",
]

TORCH_DTYPES = tuple(getattr(torch, name) for name in ITEM_BYTES)
NUMPY_DTYPES = tuple(np.dtype(name) for name in ITEM_BYTES if name in dtypes.NUMPY_DTYPES)
ML_DTYPES = tuple(
    np.dtype(getattr(ml_dtypes, name)) for name in ITEM_BYTES if name in dtypes.ML_DTYPES
)
SIZES = (0, 1, 2, 3, 5, 17)


def keys() -> SearchStrategy[Any]:
    """Return a strategy for dict keys, many alike: "0" and 0, separators, escapes, surrogates."""
    return (
        st.sampled_from(
            ["0", 0, "1", 1, "", "/", "%", "%30", "a/b", "a", "..", "**", "é", "\ud800"]
        )
        | st.text(max_size=8)
        | st.integers(-(2**63), 2**64 - 1)
    )


def floats() -> SearchStrategy[float]:
    """Return a strategy for doubles of any bits, including NaNs of any payload."""
    nans = st.integers(1, 2**52 - 1).map(lambda payload: 0x7FF0_0000_0000_0000 | payload)
    bits = st.integers(0, 2**64 - 1) | nans | nans.map(lambda bits: bits | 1 << 63)
    return bits.map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])


def plain_values() -> SearchStrategy[Any]:
    """Return a strategy for plain values: everything that is no container and no array."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**200), 2**200),
        st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), 1e-320, 0.1]),
        floats(),
        st.builds(complex, floats(), floats()),
        st.text(max_size=20),
        st.text(st.characters(codec=None), max_size=5),
        st.binary(max_size=40),
        st.binary(max_size=40).map(bytearray),
        st.sampled_from([torch.float32, torch.bfloat16, torch.Size([2, 3]), torch.Size([])]),
        st.sampled_from([torch.device("cpu"), torch.device("cuda:1")]),
        numpy_scalars(),
    )


@st.composite
def numpy_scalars(draw: DrawFn) -> Any:
    """Draw a numpy scalar of any bits."""
    dtype = draw(st.sampled_from(NUMPY_DTYPES))
    return np.frombuffer(_bits(draw, dtype.name, 1), dtype=dtype)[0]


def shapes() -> SearchStrategy[tuple[int, ...]]:
    """Return a strategy for shapes of up to 4 dimensions.

    Among them are scalars, empty shapes, and some that need one chunk of 64 KiB or more.
    """
    small = st.lists(st.sampled_from(SIZES), max_size=4).map(tuple)
    return small | st.sampled_from(
        [(65_536,), (65_535,), (300, 130), (3, 70_000), (2, 3, 17_000), (40_001,)]
    )


def printable(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape, or (1,) instead of () where torch has no `repr` for such a scalar.

    Hypothesis prints what it draws, and a test must not fail because of that.
    """
    return shape or ((1,) if dtype == "float4_e2m1fn_x2" else ())


@st.composite
def tensors(draw: DrawFn) -> torch.Tensor:
    """Draw a torch tensor of any storable dtype and any bits.

    It may be contiguous, or a transposed, strided, narrowed, conjugated or expanded view.
    """
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    name = str(dtype).removeprefix("torch.")
    shape = printable(name, draw(shapes()))
    count = int(np.prod(shape, dtype=np.int64))
    raw = torch.frombuffer(bytearray(_bits(draw, name, count)) or bytearray(8), dtype=torch.uint8)
    tensor = raw[: count * ITEM_BYTES[name]].view(dtype).reshape(shape)
    return _torch_view(draw, tensor)


def _torch_view(draw: DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    view = draw(st.sampled_from(_TORCH_VIEWS))
    if tensor.is_complex() and tensor.dtype is not torch.complex32 and view in ("conj", "neg"):
        return tensor.conj() if view == "conj" else tensor.conj().imag
    if view == "parameter" and tensor.is_floating_point():
        return torch.nn.Parameter(tensor, requires_grad=tensor.dtype is torch.float32)
    if not tensor.dim():
        return tensor
    if view == "transposed":
        return tensor.permute(*reversed(range(tensor.dim())))
    if view == "every second":
        return tensor[::2]
    if view == "every second column":
        return tensor[..., 1::2]
    if view == "narrow" and tensor.shape[-1]:
        return tensor.narrow(-1, 1, tensor.shape[-1] - 1)
    if view == "expanded" and tensor.shape[0] == 1:
        return tensor.expand(3, *tensor.shape[1:])
    return tensor


_TORCH_VIEWS = (
    "as it is",
    "transposed",
    "every second",
    "every second column",
    "narrow",
    "expanded",
    "conj",
    "neg",
    "parameter",
)


@st.composite
def ndarrays(draw: DrawFn) -> Any:
    """Draw a numpy array of any storable dtype and any bits, also with negative strides."""
    dtype, shape = draw(st.sampled_from(NUMPY_DTYPES + ML_DTYPES)), draw(shapes())
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(bytearray(_bits(draw, dtype.name, count)), dtype=dtype).reshape(shape)
    view = draw(st.sampled_from(["as it is", "transposed", "reversed", "read-only"]))
    if view == "transposed":
        return array.T
    if view == "reversed" and array.ndim:
        return array[::-2]
    if view == "read-only":
        array.flags.writeable = False
    return array


def arrays() -> SearchStrategy[Any]:
    """Return a strategy for torch tensors and numpy arrays."""
    return tensors() | ndarrays()


def states(
    *, leaves: SearchStrategy[Any] | None = None, max_leaves: int = 12
) -> SearchStrategy[Any]:
    """Return a strategy for nested structures of dicts, OrderedDicts, lists and tuples.

    Args:
        leaves: What they hold; arrays and plain values when None.
        max_leaves: About how many leaves they have at most.
    """
    return st.recursive(
        arrays() | plain_values() if leaves is None else leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(keys(), inner, max_size=5),
            st.dictionaries(keys(), inner, max_size=5).map(OrderedDict),
        ),
        max_leaves=max_leaves,
    )


def _bits(draw: DrawFn, dtype: str, count: int) -> bytes:
    """Return random bytes for some elements; those of a bool are 0 or 1."""
    size = count * ITEM_BYTES[dtype]
    seed = draw(st.integers(0, 2**32 - 1))
    data = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return data.tobytes()

"""Types that a state may hold beyond Python's plain ones, each by an explicit codec.

A codec turns a value into plain values and back. Nothing is ever found by its importable name at checkout: a type that
nobody registered in this process is an error that says which.
"""

from __future__ import annotations

import builtins
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Codec:
    """How one type becomes plain values and arrays, and comes back."""

    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


_registered: dict[str, Codec] = {}


def register_codec(
    type: type, encode: Callable[[Any], object], decode: Callable[[Any], object]
) -> None:
    """Opt a type in: `encode` gives plain values and arrays, `decode` makes the value again.

    The type is known by its module and qualified name; register it before commit and before checkout.
    """
    if not isinstance(type, builtins.type):
        raise InvalidInputError(f"{shown(type)} is not a type.")
    name = type_name(type)
    if name in _BUILT_IN or type.__module__ == "builtins":
        raise InvalidInputError(f"{name} has its own form already.")
    _registered[name] = Codec(encode, decode)


def type_name(type: type) -> str:
    """The name that stands for a type in a structure."""
    return f"{type.__module__}.{type.__qualname__}"


def encode(value: object) -> tuple[str, object] | None:
    """The name and plain form of a value whose type has a codec; None when it has none."""
    numpy = sys.modules.get("numpy")
    is_scalar = numpy is not None and isinstance(value, numpy.generic)
    name = "numpy.scalar" if is_scalar else type_name(type(value))
    codec = _registered.get(name) or _BUILT_IN.get(name)
    return (name, codec.encode(value)) if codec else None


def decode(name: str, value: object) -> object:
    """The value that a codec made a plain form of."""
    codec = _registered.get(name) or _BUILT_IN.get(name)
    if codec is None:
        raise InvalidInputError(
            f"The checkpoint holds a {name[:100]}. Call register_codec for that type first."
        )
    try:
        return codec.decode(value)
    except CkptStoreError:
        raise
    except Exception as error:
        raise CorruptError(
            f"A {name[:100]} could not be made from what the checkpoint holds: {str(error)[:200]}."
        ) from error


def _torch_dtype(name: str) -> object:
    import torch

    dtype = vars(torch).get(name)  # getattr would import what the name asks for
    if not isinstance(dtype, torch.dtype):
        raise CorruptError(f"{shown(name)} is not a torch dtype.")
    return dtype


def _torch_size(lengths: list[int]) -> object:
    import torch

    return torch.Size(lengths)


def _torch_device(text: str) -> object:
    import torch

    return torch.device(text)


def _encode_scalar(value: Any) -> list[str]:
    if value.dtype.name not in _NUMPY_SCALARS:
        raise InvalidInputError(
            f"a numpy scalar of dtype {value.dtype}, which no checkpoint can hold"
        )
    return [value.dtype.name, value.tobytes().hex()]


def _decode_scalar(form: list[str]) -> object:
    import numpy as np

    name, digits = form
    if name not in _NUMPY_SCALARS:
        raise CorruptError(f"{shown(name)} is not the dtype of a numpy scalar.")
    (value,) = np.frombuffer(bytes.fromhex(digits), dtype=name)
    return value


_NUMPY_SCALARS = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)
_BUILT_IN: dict[str, Codec] = {
    "collections.Counter": Codec(dict, Counter),  # MultiStepLR keeps its milestones in one
    "torch.Size": Codec(list, _torch_size),
    "torch.dtype": Codec(lambda dtype: str(dtype).removeprefix("torch."), _torch_dtype),
    "torch.device": Codec(str, _torch_device),
    "numpy.scalar": Codec(_encode_scalar, _decode_scalar),
}

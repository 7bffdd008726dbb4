"""Codecs of the torch and numpy values that are not arrays: sizes, dtypes, devices and scalars.

Importing this module registers them, and those of the standard library; neither framework is
imported before one of its values is decoded. Take `encode` and `decode` from here, so that they are
always registered. See section 12.1 of docs/reference/format.md.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ckptstore.arrays import standard as standard
from ckptstore.arrays.pytrees import KEY_IMPLS, encode_key, is_node
from ckptstore.documents.dtypes import NUMPY_DTYPES
from ckptstore.errors import CorruptError, InvalidInputError, shown
from ckptstore.state import codecs as state_codecs
from ckptstore.state.codecs import build_in
from ckptstore.state.codecs import decode as decode
from ckptstore.state.codecs import is_stateful as is_stateful
from ckptstore.state.codecs import register_codec as register_codec


def encode(value: object) -> tuple[str, object] | None:
    """The type name and plain form of a value; None when its type has no codec.

    Of a random key of JAX it is the data. A dataclass that is registered with JAX says itself which
    of its fields are data, and is no class of fields, unless it is registered here too.
    """
    if (key := encode_key(value)) is not None:
        return key
    if state_codecs.is_field_class(type(value)) and is_node(value):
        return None
    return state_codecs.encode(value)


def decode_known(name: str, value: object) -> object:
    """Return the value that a codec makes of its form; the form if there is no such codec."""
    try:
        return decode(name, value)
    except InvalidInputError:
        return value


def _encoded_elsewhere(value: object) -> object:
    raise InvalidInputError(f"a {shown(type(value))}")


def _torch_size(lengths: list[int]) -> object:
    import torch

    return torch.Size(lengths)


def _torch_dtype(name: str) -> object:
    import torch

    dtype = vars(torch).get(name)  # getattr would import what the name asks for
    if not isinstance(dtype, torch.dtype):
        raise CorruptError(f"{shown(name)} is not a torch dtype.")
    return dtype


def _torch_device(text: str) -> object:
    import torch

    return torch.device(text)


def _encode_scalar(value: Any) -> list[str]:
    if value.dtype.name not in NUMPY_DTYPES:
        raise InvalidInputError(
            f"a numpy scalar of dtype {value.dtype}, which no checkpoint can hold"
        )
    return [value.dtype.name, value.tobytes().hex()]


def _decode_scalar(form: list[str]) -> object:
    import numpy as np

    name, digits = form
    if name not in NUMPY_DTYPES:
        raise CorruptError(f"{shown(name)} is not the dtype of a numpy scalar.")
    (value,) = np.frombuffer(bytes.fromhex(digits), dtype=name)
    return value


def _jax_key(impl: str, data: Any) -> object:
    try:
        from ckptstore.arrays.jax import key_of
    except ImportError as error:
        raise InvalidInputError(
            "The checkpoint holds a random key of JAX, which is not installed here. Leave it out "
            "(exclude), or read it lazily."
        ) from error
    return key_of(data, impl)


for _impl, _name in KEY_IMPLS.items():  # encoded by `encode`
    build_in(_name, _encoded_elsewhere, partial(_jax_key, _impl))
build_in("torch.Size", list, _torch_size)
build_in("torch.dtype", lambda dtype: str(dtype).removeprefix("torch."), _torch_dtype)
build_in("torch.device", str, _torch_device)
build_in("numpy.scalar", _encode_scalar, _decode_scalar, family="numpy.generic")

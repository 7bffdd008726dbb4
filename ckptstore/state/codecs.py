"""Codecs: the types a state may hold beyond Python's plain ones, each by explicit registration.

A codec encodes a value as plain values and arrays, and decodes it again. Nothing is ever looked up
by its importable name at checkout: a type that was not registered in this process is an error. The
types of torch and numpy are registered by `ckptstore.arrays.codecs`, from which other packages take
`encode` and `decode`. See section 12.1 of docs/reference/format.md.
"""

from __future__ import annotations

import builtins
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one type are encoded and decoded."""

    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


_registered: dict[str, Codec] = {}
_built_in: dict[str, Codec] = {
    "collections.Counter": Codec(dict, Counter)  # MultiStepLR keeps its milestones in one
}
_families: dict[str, str] = {}  # the name that stands for a type and all below it


def register_codec(
    type: type, encode: Callable[[Any], object], decode: Callable[[Any], object]
) -> None:
    """Allow states to hold values of a type. Register it before commit and before checkout.

    Args:
        type: The type, which a structure names by its module and qualified name. Values of its
            subclasses are not encoded.
        encode: Returns a value as plain values, arrays and values of other registered types.
        decode: Makes a value from what `encode` returned.

    Raises:
        InvalidInputError: This is not a type, or one that has a form of its own.

    Example:
        >>> import ckptstore, fractions
        >>> ckptstore.register_codec(
        ...     fractions.Fraction,
        ...     lambda value: [value.numerator, value.denominator],
        ...     lambda form: fractions.Fraction(*form),
        ... )
    """
    if not isinstance(type, builtins.type):
        raise InvalidInputError(f"{shown(type)} is not a type.")
    name = type_name(type)
    if name in _built_in or type.__module__ == "builtins":
        raise InvalidInputError(f"{name} has its own form already.")
    _registered[name] = Codec(encode, decode)


def build_in(
    name: str,
    encode: Callable[[Any], object],
    decode: Callable[[Any], object],
    *,
    family: str | None = None,
) -> None:
    """Register a codec of the library itself, which no user can replace.

    Args:
        name: What stands for the type in a structure: its module and qualified name.
        encode: As for `register_codec`.
        decode: As for `register_codec`.
        family: The name of a type all of whose subclasses the codec is for, where that is so.
    """
    _built_in[name] = Codec(encode, decode)
    if family is not None:
        _families[family] = name


def type_name(type: type) -> str:
    """The name that stands for a type in a structure."""
    return f"{type.__module__}.{type.__qualname__}"


def encode(value: object) -> tuple[str, object] | None:
    """The type name and plain form of a value; None when its type has no codec."""
    names = [type_name(base) for base in type(value).__mro__]
    name = next((_families[base] for base in names if base in _families), names[0])
    codec = _registered.get(name) or _built_in.get(name)
    return (name, codec.encode(value)) if codec else None


def decode(name: str, value: object) -> object:
    """The value of a type, by the type's name, from its plain form.

    Raises:
        InvalidInputError: The type has no codec in this process.
        CorruptError: Its codec cannot decode this form.
    """
    codec = _registered.get(name) or _built_in.get(name)
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

"""Codecs: the types a state may hold beyond Python's plain ones, each by explicit registration.

A codec encodes a value as plain values and arrays, and decodes it again. Nothing is ever looked up
by its importable name at checkout: a type with a codec that was not registered in this process is
an error, and a class of plain fields comes back as these (`ckptstore.state.classes`). The types of
the standard library, of torch and of numpy are registered by `ckptstore.arrays.codecs`, from which
other packages take `encode` and `decode`. ADR 0052; section 12.1 of docs/reference/format.md.
"""

from __future__ import annotations

import builtins
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, shown
from ckptstore.state import classes

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one type are encoded and decoded."""

    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


KEYED, KEYED_ORDERED = "dict", "collections.OrderedDict"  # dicts with other keys than texts

_registered: dict[str, Codec] = {}
_built_in: dict[str, Codec] = {
    "collections.Counter": Codec(dict, Counter)  # MultiStepLR keeps its milestones in one
}
_replaceable: set[str] = set()  # names in `_built_in` for which a program may have its own codec
_families: dict[str, str] = {}  # the name that stands for a type and all below it


def register_codec(
    type: type,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], object] | None = None,
) -> None:
    """Allow states to hold values of a type. Register it before commit and before checkout.

    A namedtuple, dataclass or enumeration needs no codec to be committed, and no `encode` and
    `decode` here: registered before a checkout, it comes back as itself, otherwise as a
    `NamedValue`. Its fields are set without calling it.

    Args:
        type: The type, which a structure names by its module and qualified name. Values of its
            subclasses are not encoded.
        encode: Returns a value as plain values, arrays and values of other registered types.
        decode: Makes a value from what `encode` returned.

    Raises:
        InvalidInputError: This is not a type, or one that has a form of its own, or one that
            needs `encode` and `decode`.

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
    if name in _built_in.keys() - _replaceable or type.__module__ == "builtins":
        raise InvalidInputError(f"{name} has its own form already.")
    if encode is not None and decode is not None:
        _registered[name] = Codec(encode, decode)
    elif encode is None and decode is None:
        classes.register(type)
    else:
        raise InvalidInputError(f"Pass both encode and decode for {name}, or neither.")


def build_in(
    name: str,
    encode: Callable[[Any], object],
    decode: Callable[[Any], object],
    *,
    family: str | None = None,
    is_replaceable: bool = False,
) -> None:
    """Register a codec of the library itself.

    Args:
        name: What stands for the type in a structure: its module and qualified name.
        encode: As for `register_codec`.
        decode: As for `register_codec`.
        family: The name of a type all of whose subclasses the codec is for, where that is so.
        is_replaceable: Whether `register_codec` may be called for the type.
    """
    _built_in[name] = Codec(encode, decode)
    if is_replaceable:
        _replaceable.add(name)
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
    if codec:
        return name, codec.encode(value)
    return None if is_stateful(value) else classes.encode(value)


def is_field_class(type: type) -> bool:
    """True for a dataclass that would be stored as its fields, and that no program registered."""
    name = type_name(type)
    return (
        classes.kind_of(type) == classes.DATACLASS
        and name not in _registered
        and not classes.is_registered(type)
    )


def is_stateful(value: object) -> bool:
    """True for a module, an optimizer and any other object that has a state_dict of its own."""
    kind = type(value)
    return hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")


def decode(name: str, value: object) -> object:
    """The value of a type, by the type's name, from its plain form.

    Raises:
        InvalidInputError: The type has no codec in this process, or is a class that has changed.
        CorruptError: Its codec cannot decode this form.
    """
    codec = _registered.get(name) or _built_in.get(name)
    if codec is None and not classes.is_class(name):
        raise InvalidInputError(
            f"The checkpoint holds a {name[:100]}. Call register_codec for that type first."
        )
    try:
        return codec.decode(value) if codec else classes.decode(name, value)
    except CkptStoreError:
        raise
    except Exception as error:
        raise CorruptError(
            f"A {name[:100]} could not be made from what the checkpoint holds: {str(error)[:200]}."
        ) from error

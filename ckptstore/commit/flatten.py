"""Flatten: a state as a structure and arrays that are ready to be read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.keras import ModelState
from ckptstore.arrays.modules import named_state, unwrapped
from ckptstore.arrays.pytrees import children
from ckptstore.python_gc import paused_collector
from ckptstore.state.flatten import flatten as flatten_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat


def flatten(
    value: object, *, describe: Callable[[object], ArraySource | None] = arrays.describe
) -> Flat[ArraySource]:
    """Take a state apart; UnsupportedValueError names a value that no checkpoint can hold.

    describe: returns how to read an array, None for any other value.
    """
    with paused_collector():
        return flatten_state(value, describe=describe, encode=codecs.encode, expand=_state_of)


def _state_of(value: object) -> object:
    """The state of an object that has one, as a checkout fills it; None for any other value."""
    value = unwrapped(value)
    if arrays.is_keras(value):
        return ModelState(value).state_dict()
    if arrays.is_module(value):
        return named_state(value)
    if codecs.is_stateful(value):
        return value.state_dict()  # type: ignore[attr-defined]
    return children(value)


def flatten_stored(value: object) -> Flat[ArraySource]:
    """Take a state apart, each array in the order of its memory, as which a commit stores it."""
    flat = flatten(value)
    if all(source.order is None for source in flat.arrays.values()):
        return flat
    return replace(flat, arrays={path: one.stored() for path, one in flat.arrays.items()})

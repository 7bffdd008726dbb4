"""Flatten: a state as a structure and arrays that are ready to be read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.python_gc import paused_collector
from ckptstore.state.flatten import flatten as flatten_state

if TYPE_CHECKING:
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat


def flatten(value: object, *, with_bytes: bool = True) -> Flat[ArraySource]:
    """Take a state apart; UnsupportedValueError names a value that no checkpoint can hold.

    with_bytes: False, where the memory of the arrays is not read, is faster.
    """
    describe = partial(arrays.describe, with_bytes=with_bytes)
    with paused_collector():
        return flatten_state(value, describe=describe, encode=codecs.encode)

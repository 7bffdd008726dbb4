"""Basic indexing: the elements that `array[1000:1010, ..., 3]` selects, axis by axis. Pure."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Wanted:
    """The elements that an index selects.

    ranges: the positions along each axis of the array. shape: that of the result.
    """

    ranges: tuple[range, ...]
    shape: tuple[int, ...]


def wanted(index: object, shape: Sequence[int]) -> Wanted:
    """The elements that integers, slices, `...` and None select, as in numpy.

    IndexError for any other index, and for an integer beyond the array.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(1 for part in parts if part is not None and part is not Ellipsis)
    if sum(1 for part in parts if part is Ellipsis) > 1:
        raise IndexError("An index has at most one '...'.")
    if consumed > len(shape):
        raise IndexError(f"The array has {len(shape)} dimensions, and {consumed} were indexed.")
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    ranges: list[range] = []
    out: list[int] = []
    for part in parts:
        if part is None:
            out.append(1)
        elif part is Ellipsis:
            rest = shape[len(ranges) : len(ranges) + len(shape) - consumed]
            ranges += [range(length) for length in rest]
            out += rest
        elif isinstance(part, slice):
            ranges.append(range(*part.indices(shape[len(ranges)])))
            out.append(len(ranges[-1]))
        else:
            position = _position(part, axis=len(ranges), length=shape[len(ranges)])
            ranges.append(range(position, position + 1))
    return Wanted(tuple(ranges), tuple(out))


def touched(wanted: range, step: int) -> Iterator[tuple[int, slice, slice]]:
    """The chunks of length `step` along an axis that hold wanted positions.

    Yields the number of each chunk, the positions inside it, and their positions in the result.
    """
    if not wanted:
        return
    ascending = wanted if wanted.step > 0 else wanted[::-1]
    position = 0
    while position < len(ascending):
        number = ascending[position] // step
        end = position + len(range(ascending[position], (number + 1) * step, ascending.step))
        end = min(end, len(ascending))
        low, high = ascending[position] - number * step, ascending[end - 1] - number * step
        inside = slice(low, high + 1, ascending.step)
        if wanted.step > 0:
            yield number, inside, slice(position, end)
        else:
            first = len(ascending) - position - 1
            stop = len(ascending) - end - 1
            yield number, inside, slice(first, stop if stop >= 0 else None, -1)
        position = end


def _position(part: object, *, axis: int, length: int) -> int:
    if isinstance(part, bool):
        raise IndexError(
            "Only integers, slices, '...' and None can index an array that is not read yet."
        )
    try:
        position = operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        raise IndexError(
            "Only integers, slices, '...' and None can index an array that is not read yet."
        ) from None
    if not -length <= position < length:
        raise IndexError(f"Index {position} is beyond axis {axis}, whose length is {length}.")
    return position % length

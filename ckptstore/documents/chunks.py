"""Chunk grids: how an array is cut into blocks, each stored as one object.

A grid is regular: every chunk has the same shape, except that those at the end of a dimension are
as short as the array. A chunk's bytes are the elements of its block in C order, never padded.

An array whose memory has its dimensions in another order is cut as the array in that order, which
is in C order (ADR 0048).

Any grid can be read (ADR 0022), since ranks store the rows *and* columns they hold. Commits of one
process make a *contiguous* grid: 1 in the leading dimensions, then k, then whole. There, each chunk
is one run of the array's bytes, so it is a zero-copy slice of memory.

Described in docs/reference/format.md, section 10.2. Pure: nothing here reads or allocates arrays.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

DIMENSIONS_MAX = 64
LENGTH_MAX = 2**63 - 1  # of a dimension, also where another has length 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of an array.

    Attributes:
        start: Where its bytes begin among those of the array in C order, if they are one run of
            these; None if they are not.
        size: Its bytes.
        index: The part of the array it covers, a slice for each dimension.
    """

    start: int | None
    size: int
    index: tuple[slice, ...]


def chunk_shape(shape: tuple[int, ...], *, item_bytes: int, chunk_bytes: int) -> tuple[int, ...]:
    """The shape of the largest contiguous chunks of at most `chunk_bytes` bytes, or of one element.

    From the last dimension backwards, each is kept whole as long as it fits; the first that does
    not is cut into runs of k; those before it get length 1.
    """
    run_bytes = item_bytes
    for axis in range(len(shape) - 1, -1, -1):
        if run_bytes * shape[axis] > chunk_bytes:
            k = max(1, chunk_bytes // run_bytes)
            return (1,) * axis + (k,) + whole(shape[axis + 1 :])
        run_bytes *= max(1, shape[axis])
    return whole(shape)


def whole(shape: Sequence[int]) -> tuple[int, ...]:
    """The chunk shape of an array in one chunk."""
    return tuple(max(1, length) for length in shape)


def is_grid(shape: Sequence[int], chunk: Sequence[int]) -> bool:
    """True for a chunk shape that an array of this shape can have."""
    return len(chunk) == len(shape) and all(
        1 <= step <= max(1, length) for step, length in zip(chunk, shape, strict=True)
    )


def is_contiguous(shape: Sequence[int], block: Sequence[int]) -> bool:
    """True when a block of this shape is one run of the array's bytes in C order.

    block: no longer than the array in any dimension. If it is a run, so is every chunk of a grid of
    such blocks.
    """
    cut = next((axis for axis, length in enumerate(block) if length != 1), len(block))
    return all(
        length == most
        for length, most in zip(block[cut + 1 :], whole(shape[cut + 1 :]), strict=True)
    )


def chunk_counts(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """The number of chunks along each dimension."""
    return tuple(-(-length // step) for length, step in zip(shape, chunk, strict=True))


def chunk_count(shape: Sequence[int], chunk: Sequence[int]) -> int:
    """How many chunks the grid has; an empty array has none."""
    return math.prod(chunk_counts(shape, chunk))


def number_of(position: Sequence[int], counts: Sequence[int]) -> int:
    """The number, in C order, of a position in a grid that has `counts` along each dimension."""
    number = 0
    for index, count in zip(position, counts, strict=True):
        number = number * count + index
    return number


def chunks(shape: tuple[int, ...], chunk: tuple[int, ...], *, item_bytes: int) -> Iterator[Chunk]:
    """Every chunk in C order of the grid, the order in which a page lists their digests."""
    if 0 in shape:
        return
    steps = [range(0, length, step) for length, step in zip(shape, chunk, strict=True)]
    are_runs = is_contiguous(shape, chunk)
    start = 0
    for corner in itertools.product(*steps):
        index = tuple(
            slice(begin, min(begin + step, length))
            for begin, step, length in zip(corner, chunk, shape, strict=True)
        )
        size = math.prod(part.stop - part.start for part in index) * item_bytes
        yield Chunk(start if are_runs else None, size, index)
        start += size


def stored_order(values: Sequence[T], order: Sequence[int] | None) -> tuple[T, ...]:
    """The values of the dimensions of an array, such as its lengths, in another order of these."""
    return tuple(values) if order is None else tuple([values[axis] for axis in order])


def reversed_order(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes another one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def order_of(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...] | None:
    """The order of dimensions in which the elements of an array are one run of memory.

    Args:
        shape: Its lengths.
        strides: The distance in memory from one element to the next along each dimension, in
            elements.

    Returns:
        The dimensions, the slowest first. None for C order, for an array without elements, and for
        one whose elements have gaps or share memory.
    """
    # Of two dimensions with the same stride, the one of length 1 is inside the other.
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], shape[axis] == 1))
    if order == list(range(len(shape))) or 0 in shape:
        return None
    distance, is_exact = 1, True
    for axis in reversed(order):
        if strides[axis] != distance:
            if shape[axis] != 1:
                return None
            is_exact = False  # its stride means nothing, so that no order gives it
        distance *= shape[axis]
    if is_exact:
        return tuple(order)
    long = [axis for axis in order if shape[axis] != 1]
    return None if long == sorted(long) else tuple(order)


def runs(shape: Sequence[int], box: Sequence[range]) -> Iterator[tuple[int, int]]:
    """The start and length, in elements, of each run of a box in an array in C order."""
    axis = len(shape) - 1  # becomes the last one that runs do not contain whole
    while axis > 0 and len(box[axis]) == shape[axis]:
        axis -= 1
    inner = math.prod(shape[axis + 1 :])
    length = len(box[axis]) * inner
    for index in itertools.product(*box[:axis]):
        yield number_of((*index, box[axis].start), shape[: axis + 1]) * inner, length

"""How an array is cut into chunks: contiguous blocks in C order on a regular grid.

A chunk's shape is 1 in the leading dimensions, then k, then whole, so every chunk is one contiguous run of the array's
bytes: a zero-copy slice in memory, and one object in storage. The last chunk along an axis is stored unpadded.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DIMENSIONS_MAX = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: where it lies in the array, as a run of bytes and as a slice of each dimension."""

    start: int
    size: int
    index: tuple[slice, ...]


def chunk_shape(shape: tuple[int, ...], *, item_bytes: int, chunk_bytes: int) -> tuple[int, ...]:
    """The shape of the largest chunks of at most `chunk_bytes` bytes, or of one element.

    The rows that fit are counted from the last dimension backwards: as long as a dimension fits whole it is kept
    whole; the first that does not is cut into runs of k; all before it have length 1.
    """
    run_bytes = item_bytes
    for axis in range(len(shape) - 1, -1, -1):
        if run_bytes * shape[axis] > chunk_bytes:
            k = max(1, chunk_bytes // run_bytes)
            return (1,) * axis + (k,) + tuple(max(1, length) for length in shape[axis + 1 :])
        run_bytes *= max(1, shape[axis])
    return tuple(max(1, length) for length in shape)


def chunk_count(shape: tuple[int, ...], chunk: tuple[int, ...]) -> int:
    """How many chunks the grid has; an empty array has none."""
    if 0 in shape:
        return 0
    return math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))


def is_contiguous_grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> bool:
    """True when every chunk of this grid is one contiguous run of a C-ordered array."""
    if len(chunk) != len(shape) or any(step < 1 for step in chunk):
        return False
    leading = 0
    while leading < len(chunk) and chunk[leading] == 1:
        leading += 1
    return all(
        step >= length
        for step, length in zip(chunk[leading + 1 :], shape[leading + 1 :], strict=True)
    )


def chunks(shape: tuple[int, ...], chunk: tuple[int, ...], *, item_bytes: int) -> Iterator[Chunk]:
    """Every chunk in C order of the grid; the order in which a page lists their digests."""
    if 0 in shape:
        return
    steps = [range(0, length, step) for length, step in zip(shape, chunk, strict=True)]
    start = 0
    for corner in itertools.product(*steps):
        index = tuple(
            slice(begin, min(begin + step, length))
            for begin, step, length in zip(corner, chunk, shape, strict=True)
        )
        size = math.prod(part.stop - part.start for part in index) * item_bytes
        yield Chunk(start, size, index)
        start += size


def runs(shape: Sequence[int], box: Sequence[range]) -> Iterator[tuple[int, int]]:
    """Where the elements of a box lie in an array in C order: the start and length of each run, in order."""
    axis = len(shape) - 1  # the last one that is not a part of each run in full
    while axis > 0 and len(box[axis]) == shape[axis]:
        axis -= 1
    inner = math.prod(shape[axis + 1 :])
    length = len(box[axis]) * inner
    for index in itertools.product(*box[:axis]):
        start = 0
        for position, whole in zip((*index, box[axis].start), shape[: axis + 1], strict=True):
            start = start * whole + position
        yield start * inner, length

"""Boxes: parts of an array that one process holds or wants, and the chunks that they touch. Pure.

ADR 0067; docs/reference/format.md, section 10.2.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

from ckptstore.documents.chunks import chunk_counts, number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Shape = tuple[int, ...]


class Box(NamedTuple):
    """A part of an array: where it begins, and its lengths."""

    corner: Shape
    shape: Shape

    @property
    def end(self) -> Shape:
        """Where it ends."""
        return tuple(begin + size for begin, size in zip(self.corner, self.shape, strict=True))

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    def within(self, outer: Box) -> tuple[slice, ...]:
        """The elements that it has of another box, which contains it."""
        return tuple(
            slice(begin - start, begin - start + size)
            for begin, start, size in zip(self.corner, outer.corner, self.shape, strict=True)
        )


class Part(NamedTuple):
    """The part of a chunk that is inside a box.

    Attributes:
        number: Of the chunk, in C order of the grid.
        chunk: Where the chunk is in the array.
        box: Where the part is in the array.
    """

    number: int
    chunk: Box
    box: Box

    @property
    def is_whole(self) -> bool:
        """True when the box contains all of the chunk."""
        return self.box == self.chunk


def whole_chunks(box: Box, *, shape: Shape, grid: Shape) -> Box | None:
    """The largest part of a box that consists of whole chunks; None if it contains none."""
    corner, sizes = [], []
    for begin, end, length, step in zip(box.corner, box.end, shape, grid, strict=True):
        low = -(-begin // step) * step
        high = length if end == length else end // step * step
        if low >= high:
            return None
        corner.append(low)
        sizes.append(high - low)
    return Box(tuple(corner), tuple(sizes))


def parts(box: Box, *, shape: Shape, grid: Shape) -> Iterator[Part]:
    """The part of each chunk of an array that is inside a box, in C order of the grid."""
    if 0 in box.shape:
        return
    counts = chunk_counts(shape, grid)
    spans = (
        range(begin // step, -(-end // step))
        for begin, end, step in zip(box.corner, box.end, grid, strict=True)
    )
    for position in itertools.product(*spans):
        chunk = chunk_at(position, shape=shape, grid=grid)
        low = tuple(map(max, box.corner, chunk.corner))
        high = map(min, box.end, chunk.end)
        inside = Box(low, tuple(stop - start for start, stop in zip(low, high, strict=True)))
        yield Part(number_of(position, counts), chunk, inside)


def chunk_at(position: Sequence[int], *, shape: Shape, grid: Shape) -> Box:
    """The chunk at a position of a grid."""
    corner = tuple(index * step for index, step in zip(position, grid, strict=True))
    ends = (
        min(begin + step, length) for begin, step, length in zip(corner, grid, shape, strict=True)
    )
    return Box(corner, tuple(end - begin for begin, end in zip(corner, ends, strict=True)))

"""Grid: how an array is cut into chunks of which several processes hold boxes. Pure.

A box should consist of whole chunks, which its process puts by itself. Where that would take far
too many chunks, a few lie across the edges of boxes; the parts of these are joined by one process.
ADR 0067; docs/reference/format.md, section 10.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.documents.chunks import is_grid, whole
from ckptstore.documents.page import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore.documents.boxes import Box, Shape

JOINED_BYTES = 256 << 10  # an array up to this size is joined if its boxes are small arrays
COARSE = 8  # a box has at most about so many chunks more along a dimension than fit into it
ALIKE = 16  # the chunks of the parent are kept if those chosen anew would have less than so many


def grid_of(
    shape: Shape,
    boxes: Sequence[Box],
    *,
    item_bytes: int,
    chunk_bytes: int,
    before: Shape | None = None,
) -> Shape:
    """Choose the chunk shape of an array.

    Args:
        shape: Its lengths.
        boxes: What the processes hold of it; together all of it.
        item_bytes: Bytes of an element.
        chunk_bytes: Bytes of the largest chunks.
        before: Its chunk shape in the parent. It is kept where the boxes consist of such chunks, so
            that chunks that did not change are found again by another number of processes.

    Returns:
        A chunk shape for which most of each box is whole chunks.
    """
    boxes = [box for box in boxes if 0 not in box.shape]
    axes = [_Axis.of(axis, shape, boxes) for axis in range(len(shape))]
    grid = _grid(axes, item_bytes=item_bytes, chunk_bytes=chunk_bytes)
    nbytes = math.prod(shape) * item_bytes
    largest = max((box.size * item_bytes for box in boxes), default=0)
    if nbytes <= JOINED_BYTES and largest < SMALL_BYTES:
        free = [_Axis(cuts=0, length=length, longest=length) for length in whole(shape)]
        grid = _grid(free, item_bytes=item_bytes, chunk_bytes=chunk_bytes)
    if before is None or not is_grid(shape, before):
        return grid
    fits = all(axis.cuts % step == 0 for axis, step in zip(axes, before, strict=True))
    is_alike = math.prod(grid) < ALIKE * math.prod(before) <= ALIKE**2 * math.prod(grid)
    return before if fits and is_alike else grid


@dataclass(frozen=True, slots=True)
class _Axis:
    """How one dimension of an array is cut into boxes.

    cuts: the greatest common divisor of the positions inside the array where boxes meet; 0 if none
    do.
    length: of the array. longest: of the boxes.
    """

    cuts: int
    length: int
    longest: int

    @classmethod
    def of(cls, axis: int, shape: Shape, boxes: Sequence[Box]) -> _Axis:
        edges = {edge for box in boxes for edge in (box.corner[axis], box.end[axis])}
        return cls(
            cuts=math.gcd(*(edges - {shape[axis]})),
            length=max(1, shape[axis]),
            longest=max((box.shape[axis] for box in boxes), default=1),
        )

    def step(self, most: int) -> int:
        """The length of chunks along this dimension, which is to be at most `most`."""
        if not self.cuts:
            return min(self.length, most)
        step = _divisor(self.cuts, most)
        coarse = min(most, max(1, self.longest // COARSE))
        return step if step * COARSE > coarse else coarse


def _grid(axes: Sequence[_Axis], *, item_bytes: int, chunk_bytes: int) -> Shape:
    """As long as possible along the last dimensions, and short along the first, as in one process.

    There, what is left for the dimensions before the one that is cut is always 1.
    """
    grid: list[int] = []
    room = max(1, chunk_bytes // item_bytes)
    for axis in reversed(axes):
        grid.append(axis.step(max(1, room)))
        room //= grid[-1]
    return tuple(reversed(grid))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    if number <= most:
        return number
    small = [step for step in range(1, math.isqrt(number) + 1) if number % step == 0]
    return max(step for low in small for step in (low, number // low) if step <= most)

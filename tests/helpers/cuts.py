"""Cuts: arrays drawn with the boxes into which processes have cut them."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hypothesis import strategies as st

from ckptstore.documents.boxes import Box

Shape = tuple[int, ...]


def chunked(length: int, count: int) -> list[tuple[int, int]]:
    """Where shards begin and how long they are, as torch divides a dimension among ranks."""
    size = max(1, -(-length // count))
    return [
        (min(start, length), max(0, min(size, length - start)))
        for start in range(0, size * count, size)
    ]


def mesh(shape: Shape, counts: Shape) -> list[Box]:
    """The boxes of a mesh that cuts each dimension into so many parts, empty ones among them."""
    sides = [chunked(length, count) for length, count in zip(shape, counts, strict=True)]
    return [
        Box(tuple(begin for begin, _ in box), tuple(size for _, size in box))
        for box in itertools.product(*sides)
    ]


@st.composite
def partitions(draw: Any, shape: Shape, *, boxes_max: int = 8) -> list[Box]:
    """Boxes that fill an array, cut anywhere."""
    boxes = [Box((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, boxes_max - 1))):
        number = draw(st.integers(0, len(boxes) - 1))
        box = boxes[number]
        axes = [axis for axis, size in enumerate(box.shape) if size > 1]
        if not axes:
            continue
        axis = draw(st.sampled_from(axes))
        first = draw(st.integers(1, box.shape[axis] - 1))
        low, high = list(box.shape), list(box.shape)
        corner = list(box.corner)
        low[axis], high[axis] = first, box.shape[axis] - first
        corner[axis] += first
        boxes[number : number + 1] = [
            Box(box.corner, tuple(low)),
            Box(tuple(corner), tuple(high)),
        ]
    return boxes


def shapes(*, elements_max: int = 250_000) -> st.SearchStrategy[Shape]:
    """Shapes of up to three dimensions."""
    return (
        st.lists(st.integers(1, 700), min_size=1, max_size=3)
        .map(tuple)
        .filter(lambda shape: math.prod(shape) <= elements_max)
    )

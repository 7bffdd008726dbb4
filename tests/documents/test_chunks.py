"""Chunk grids: each element once, and which chunks are one run of the array's memory."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.chunks import (
    chunk_count,
    chunk_shape,
    chunks,
    is_contiguous,
    is_grid,
)

SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@given(SHAPES, st.sampled_from([1, 2, 4, 16]), st.integers(1, 400))
def test_the_chunks_in_order_are_the_array(shape: tuple[int, ...], item: int, limit: int) -> None:
    """As runs of bytes and as slices alike, and none larger than the limit or one element."""
    count = int(np.prod(shape, dtype=int))
    array = np.arange(count * item, dtype=np.uint32).astype(np.uint8)
    elements = array.reshape(*shape, item)
    cut = chunk_shape(shape, item_bytes=item, chunk_bytes=limit)
    found = list(chunks(shape, cut, item_bytes=item))
    assert is_grid(shape, cut)
    assert is_contiguous(shape, cut)
    assert len(found) == chunk_count(shape, cut)
    starts = [chunk.start for chunk in found]
    assert starts == [0, *itertools.accumulate(chunk.size for chunk in found)][: len(found)]
    joined = array.tobytes()
    for chunk in found:
        assert chunk.start is not None
        assert 0 < chunk.size <= max(limit, item)
        assert elements[chunk.index].tobytes() == joined[chunk.start : chunk.start + chunk.size]


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and any chunk shape that an array of it can have."""
    shape = draw(SHAPES)
    return shape, tuple(draw(st.integers(1, max(1, length))) for length in shape)


@given(grids(), st.sampled_from([1, 4]))
def test_any_grid_covers_each_element_once_and_knows_which_chunks_are_runs(
    grid: tuple[tuple[int, ...], tuple[int, ...]], item: int
) -> None:
    shape, cut = grid
    assert is_grid(shape, cut)
    order = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    seen = np.zeros(shape, int)
    listed = list(chunks(shape, cut, item_bytes=item))
    assert len(listed) == chunk_count(shape, cut)
    for chunk in listed:
        seen[chunk.index] += 1
        elements = order[chunk.index].ravel()
        assert chunk.size == len(elements) * item
        if chunk.start is not None:
            assert (elements == chunk.start // item + np.arange(len(elements))).all()
    assert (seen == 1).all()
    # One run each: exactly then the whole grid counts as contiguous.
    are_runs = all((np.diff(order[chunk.index].ravel()) == 1).all() for chunk in listed)
    assert are_runs or not is_contiguous(shape, cut)
    assert all((chunk.start is not None) == is_contiguous(shape, cut) for chunk in listed)


@given(SHAPES, SHAPES)
def test_a_chunk_shape_fits_when_each_length_is_at_least_1_and_not_beyond_the_array(
    shape: tuple[int, ...], cut: tuple[int, ...]
) -> None:
    fits = len(shape) == len(cut) and all(
        1 <= step <= max(1, length) for step, length in zip(cut, shape, strict=True)
    )
    assert is_grid(shape, cut) == fits


def test_known_grids() -> None:
    """Whole rows while they fit, then several; scalars and empty arrays are special."""
    assert chunk_shape((8192, 512), item_bytes=4, chunk_bytes=8 << 20) == (4096, 512)
    assert chunk_shape((3, 5, 1 << 22), item_bytes=4, chunk_bytes=8 << 20) == (1, 1, 1 << 21)
    assert chunk_shape((1000,), item_bytes=16, chunk_bytes=1 << 16) == (1000,)
    assert chunk_shape((), item_bytes=4, chunk_bytes=1 << 16) == ()
    assert chunk_count((), ()) == 1
    assert chunk_count((0, 5), (1, 5)) == 0

"""The chunk grid: every byte once, in order, each chunk one run of the array's memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.documents.chunks import chunk_count, chunk_shape, chunks, is_contiguous_grid

SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@given(SHAPES, st.sampled_from([1, 2, 4, 16]), st.integers(1, 400))
def test_the_chunks_in_order_are_the_array(shape: tuple[int, ...], item: int, limit: int) -> None:
    """As runs of bytes and as slices alike, and none larger than the limit or one element."""
    count = int(np.prod(shape, dtype=int))
    array = np.arange(count * item, dtype=np.uint32).astype(np.uint8)
    elements = array.reshape(*shape, item)
    cut = chunk_shape(shape, item_bytes=item, chunk_bytes=limit)
    found = list(chunks(shape, cut, item_bytes=item))
    assert is_contiguous_grid(shape, cut)
    assert len(found) == chunk_count(shape, cut)
    joined = b"".join(array[chunk.start : chunk.start + chunk.size].tobytes() for chunk in found)
    assert joined == array.tobytes()
    for chunk in found:
        assert 0 < chunk.size <= max(limit, item)
        assert elements[chunk.index].tobytes() == joined[chunk.start : chunk.start + chunk.size]


@given(SHAPES, SHAPES, st.sampled_from([1, 4]))
def test_a_grid_counts_as_contiguous_exactly_when_its_chunks_are_runs(
    shape: tuple[int, ...], cut: tuple[int, ...], item: int
) -> None:
    if len(shape) != len(cut) or 0 in cut or 0 in shape or not shape:
        return
    order = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    steps = [range(0, length, step) for length, step in zip(shape, cut, strict=True)]
    runs = all(
        (
            np.diff(order[tuple(slice(c, c + s) for c, s in zip(corner, cut, strict=True))].ravel())
            == 1
        ).all()
        for corner in np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, len(shape))
    )
    if is_contiguous_grid(shape, cut):
        assert runs


def test_known_grids() -> None:
    """Whole rows while they fit, then several; scalars and empty arrays are special."""
    assert chunk_shape((8192, 512), item_bytes=4, chunk_bytes=8 << 20) == (4096, 512)
    assert chunk_shape((3, 5, 1 << 22), item_bytes=4, chunk_bytes=8 << 20) == (1, 1, 1 << 21)
    assert chunk_shape((1000,), item_bytes=16, chunk_bytes=1 << 16) == (1000,)
    assert chunk_shape((), item_bytes=4, chunk_bytes=1 << 16) == ()
    assert chunk_count((), ()) == 1
    assert chunk_count((0, 5), (1, 5)) == 0

"""The grid of an array of which several processes hold boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.commit.grid import COARSE, grid_of
from ckptstore.documents.boxes import Box, parts, whole_chunks
from ckptstore.documents.chunks import chunk_count, chunk_shape, is_grid
from tests.helpers.cuts import mesh, partitions, shapes

CHUNK_BYTES = 1 << 16


def grid(shape, boxes, *, item_bytes=4, chunk_bytes=CHUNK_BYTES, before=None):
    return grid_of(shape, boxes, item_bytes=item_bytes, chunk_bytes=chunk_bytes, before=before)


def lost(shape, boxes, chosen):
    """The elements of chunks that no box has whole."""
    return sum(
        part.box.size
        for box in boxes
        for part in parts(box, shape=shape, grid=chosen)
        if not part.is_whole
    )


@given(st.data())
def test_an_array_in_one_box_is_cut_as_in_one_process(data):
    shape = data.draw(shapes(elements_max=10**8))
    item = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    chosen = grid(shape, [Box((0,) * len(shape), shape)], item_bytes=item)
    assert chosen == chunk_shape(shape, item_bytes=item, chunk_bytes=CHUNK_BYTES)


@given(st.data())
def test_any_boxes_have_a_grid_of_chunks_that_are_not_too_large(data):
    shape = data.draw(shapes())
    boxes = data.draw(partitions(shape))
    chosen = grid(shape, boxes)
    assert is_grid(shape, chosen)
    assert math.prod(chosen) * 4 <= CHUNK_BYTES


@given(st.data())
def test_boxes_whose_edges_are_regular_consist_of_whole_chunks(data):
    steps = data.draw(st.lists(st.integers(130, 260), min_size=1, max_size=2))
    counts = data.draw(st.tuples(*(st.integers(1, 4) for _ in steps)))
    ends = [data.draw(st.integers(1, step)) for step in steps]
    shape = tuple(
        step * (count - 1) + end for step, count, end in zip(steps, counts, ends, strict=True)
    )
    boxes = mesh(shape, counts)
    chosen = grid(shape, boxes, chunk_bytes=1 << 23)
    if max(box.size for box in boxes) * 4 >= 1 << 16:
        assert lost(shape, boxes, chosen) == 0


@pytest.mark.parametrize(
    ("shape", "counts", "expected"),
    [
        ((4096, 4096), (8, 1), (512, 4096)),
        ((4096, 4096), (1, 8), (4096, 512)),
        ((4096, 4096), (4, 2), (1024, 2048)),
        ((50257, 768), (8, 1), (103, 768)),  # 6283 = 61 x 103 rows
        ((8 * 6287, 768), (8, 1), (785, 768)),  # a prime: an eighth, and edges are joined
        ((50257, 64), (1, 1), (32768, 64)),
    ],
    ids=str,
)
def test_the_grids_of_usual_shards(shape, counts, expected):
    assert grid(shape, mesh(shape, counts), chunk_bytes=8 << 20) == expected


def test_two_uneven_cuts_of_one_dimension_join_little():
    """Tensor parallel in 2, each part sharded in 4: edges at 7 x 4 and 25 x 4 lengths and so on."""
    half = [Box((begin, 0), (size, 512)) for begin, size in ((0, 629), (629, 629))]
    boxes = [
        Box((box.corner[0] + inner.corner[0], 0), inner.shape)
        for box in half
        for inner in mesh(box.shape, (4, 1))
    ]
    shape = (1258, 512)
    chosen = grid(shape, boxes, chunk_bytes=8 << 20)
    assert chunk_count(shape, chosen) <= 2 * COARSE * len(boxes)
    assert lost(shape, boxes, chosen) <= 0.25 * 1258 * 512


@given(st.data())
def test_chunks_stay_as_they_were_where_boxes_consist_of_them(data):
    counts = data.draw(st.sampled_from([(4, 1), (2, 2), (1, 4), (4, 4)]))
    shape = (1024, 1024)
    before = grid(shape, mesh(shape, (4, 4)))
    assert grid(shape, mesh(shape, counts), before=before) == before
    assert grid(shape, mesh(shape, (3, 1)), before=before) != before


def test_a_much_finer_grid_is_not_kept():
    shape = (1024, 1024)
    assert grid(shape, mesh(shape, (4, 1)), before=(1, 16)) == (16, 1024)


def test_small_shards_are_joined_and_those_of_large_arrays_are_not():
    assert grid((64, 1024), mesh((64, 1024), (16, 1)), chunk_bytes=8 << 20) == (64, 1024)
    assert grid((2048, 256), mesh((2048, 256), (64, 1)), chunk_bytes=8 << 20) == (32, 256)


@given(st.data())
def test_whole_chunks_and_parts_make_up_each_box(data):
    shape = data.draw(shapes(elements_max=20_000))
    chosen = data.draw(st.tuples(*(st.integers(1, length) for length in shape)))
    seen = np.zeros(shape, int)
    for box in data.draw(partitions(shape)):
        inner = whole_chunks(box, shape=shape, grid=chosen)
        here = np.zeros(shape, int)
        if inner is not None:
            here[inner.within(Box((0,) * len(shape), shape))] += 1
        touched = list(parts(box, shape=shape, grid=chosen))
        for part in touched:
            if not part.is_whole:
                here[part.box.within(Box((0,) * len(shape), shape))] += 1
        assert sum(part.box.size for part in touched) == box.size == here.sum()
        seen += here
    assert (seen == 1).all()

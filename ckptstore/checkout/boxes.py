"""Boxes: the parts of arrays that a process wants, read into memory that exists already.

Only the chunks that a box touches are read, each once, and checked before anything of it is copied:
what is read is the box and, along each edge that is not one of the grid, less than one chunk more.
ADR 0005, ADR 0067; docs/reference/format.md, section 13.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptstore.arrays import frameworks as arrays
from ckptstore.checkout.reader import bundled, read_small, reading_threads
from ckptstore.documents.boxes import Box, Part, parts
from ckptstore.documents.chunks import Chunk, stored_order
from ckptstore.documents.dtypes import ITEM_BYTES, word
from ckptstore.threads import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Page
    from ckptstore.store.objects import ObjectReader


class Wanted(NamedTuple):
    """A part of an array, and the array of its shape and dtype to fill with it."""

    box: Box
    target: Any


def read_boxes(
    pages: Sequence[Page], wanted: Mapping[str, Sequence[Wanted]], *, objects: ObjectReader
) -> None:
    """Fill existing arrays with parts of stored ones. On an error some may hold new values.

    Args:
        pages: Those that list the arrays.
        wanted: What is wanted of each array, by its path.
        objects: Reads the chunks.
    """
    jobs: list[Callable[[], object]] = []
    buffers = Buffers()
    largest = 1
    for entry in (entry for page in pages for entry in page.entries):
        if entry.offset is None and entry.path in wanted:
            for digest, size, places in _chunks(entry, wanted[entry.path]):
                largest = max(largest, size)
                jobs.append(partial(_read, objects, buffers, entry.dtype, digest, size, places))
    gather(jobs, threads=reading_threads(objects, largest))
    for entry, data in read_small(bundled(pages, wanted), objects):
        for _, _, places in _chunks(entry, wanted[entry.path]):
            _copy(data, entry.dtype, places)
        del data


_Places = list[tuple[Part, Any]]  # the parts of a chunk, and the memory for each


def _chunks(entry: ArrayEntry, wanted: Sequence[Wanted]) -> list[tuple[Digest, int, _Places]]:
    """The digest and size of each chunk that is touched, and where its parts go."""
    shape, grid = entry.stored_shape, entry.stored_chunk_shape
    places: dict[int, _Places] = defaultdict(list)
    for box, target in wanted:
        stored = Box(stored_order(box.corner, entry.order), stored_order(box.shape, entry.order))
        memory = arrays.in_order(target, entry.order)
        for part in parts(stored, shape=shape, grid=grid):
            # An array of 0 dimensions is its own part; an index would read its element.
            inside = memory[part.box.within(stored)] if shape else memory
            places[part.number].append((part, inside))
    item = ITEM_BYTES[entry.dtype]
    return [
        (entry.digests[number], item * found[0][0].chunk.size, found)
        for number, found in places.items()
    ]


def _read(
    objects: ObjectReader,
    buffers: Buffers,
    dtype: str,
    digest: Digest,
    size: int,
    places: _Places,
) -> None:
    """Read a chunk, and copy its parts to their places."""
    data = buffers.of(size)
    objects.read_into(digest, data)
    _copy(data, dtype, places)


def _copy(data: memoryview, dtype: str, places: _Places) -> None:
    """Copy the parts of a chunk that was checked."""
    import numpy as np

    for part, target in places:
        inside = data
        if not part.is_whole:
            elements = np.frombuffer(data, word(dtype)).reshape(part.chunk.shape)
            cut = np.ascontiguousarray(elements[part.box.within(part.chunk)])
            inside = cut.reshape(-1).view(np.uint8).data
        arrays.copy_chunk(target, Chunk(0, len(inside), ()), inside)

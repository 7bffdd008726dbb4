"""Arrays that a file holds in Fortran's order, as npy and pickled numpy arrays may."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, BinaryIO

from ckptstore.arrays import source as arrays
from ckptstore.arrays.file import FileArray
from ckptstore.documents.chunks import runs
from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ckptstore.arrays.file import Scratch

TILE_BYTES = 16 << 20  # turned at once


def is_turned(*, is_fortran: bool, shape: Sequence[int]) -> bool:
    """Whether Fortran's order is another one for such a shape."""
    return is_fortran and len(shape) > 1 and 0 not in shape


def turned(array: FileArray, scratch: Scratch) -> FileArray:
    """An array whose first index runs fastest as one whose last does, written out to a file without a name."""
    stored = array.shape[::-1]  # its bytes are those of the transposed array in C order

    def write(file: BinaryIO) -> None:
        item, begin = ITEM_BYTES[array.dtype], file.tell()
        for tile in _tiles(array.shape, TILE_BYTES // item):
            turned = tile[::-1]
            lengths = tuple(len(span) for span in turned)
            part, data = arrays.allocate(array.kind, array.dtype, lengths)
            filled = 0
            for start, length in runs(stored, turned):
                array.read_into(data[filled : filled + length * item], start * item)
                filled += length * item
            copy, data = arrays.allocate(array.kind, array.dtype, lengths[::-1])
            copy[...] = part.T
            written = 0
            for start, length in runs(array.shape, tile):
                file.seek(begin + start * item)
                file.write(data[written : written + length * item])
                written += length * item

    offset = scratch.add(write)
    return FileArray(
        scratch,
        kind=array.kind,
        dtype=array.dtype,
        shape=array.shape,
        offset=offset,
        identity=array.identity,
    )


def _tiles(shape: Sequence[int], size: int) -> Iterator[tuple[range, ...]]:
    """Parts of a shape of at most so many elements, long in the first dimensions as well as in the last."""
    lengths = [1] * len(shape)
    while math.prod(lengths) * 2 <= size and list(shape) != lengths:
        first = next(i for i, length in enumerate(lengths) if length < shape[i])
        last = next(i for i in reversed(range(len(shape))) if lengths[i] < shape[i])
        is_first = math.prod(lengths[: first + 1]) <= math.prod(lengths[last:])
        axis = first if is_first else last
        lengths[axis] = min(2 * lengths[axis], shape[axis])
    steps = [
        [range(start, min(start + length, whole)) for start in range(0, whole, length)]
        for length, whole in zip(lengths, shape, strict=True)
    ]
    return product(*steps)

"""Plan: which arrays become chunks, which share a bundle, and where pages end. Pure.

A plan follows from the dtypes and shapes alone, so several processes that know these make the same
one. Each can then put the chunks that it holds (`ckptstore.commit.put`), and one of them makes the
pages from the digests of all (`ckptstore.commit.assemble`).

ADR 0003, ADR 0022; docs/reference/format.md, sections 10.2 to 10.4.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ckptstore.documents.chunks import (
    chunk_count,
    chunk_counts,
    chunk_shape,
    chunks,
    is_contiguous,
    is_grid,
    number_of,
    whole,
)
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.marker import CHUNK_BYTES_MAX
from ckptstore.documents.page import SMALL_BYTES, cut
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.documents.chunks import Chunk

    Shape = tuple[int, ...]


class Described(Protocol):
    """The properties of an array that a plan depends on, its lengths in stored order."""

    @property
    def dtype(self) -> str:
        """Its dtype."""

    @property
    def shape(self) -> Shape:
        """Its lengths."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""

    @property
    def order(self) -> Shape | None:
        """Its dimensions in stored order; None for C order."""


class ArrayPlan(NamedTuple):
    """How one array is stored.

    Attributes:
        path: Its path in the state.
        dtype: Its dtype.
        shape: Its lengths in stored order, in which all of the plan is.
        chunk_shape: The shape of its chunks; None for a small array, which goes into its page's
            bundle.
        tied: The path of another array that is the same one and is stored under that path.
        order: Its dimensions in stored order; None for C order.
    """

    path: str
    dtype: str
    shape: Shape
    chunk_shape: Shape | None
    tied: str | None = None
    order: Shape | None = None

    @property
    def digest_count(self) -> int:
        """How many digests its page entry lists."""
        return 1 if self.chunk_shape is None else chunk_count(self.shape, self.chunk_shape)

    def chunks(self, shape: Shape, corner: Shape | None = None) -> Iterator[tuple[int, Chunk]]:
        """The chunks of an array, or of the shard of it that one process holds.

        Args:
            shape: The shape of the shard.
            corner: The position of its first element in the array; None for the whole array.

        Returns:
            Each chunk, placed relative to the shard, with its number in C order of the whole grid.

        Raises:
            InvalidInputError: The shard does not consist of whole chunks.
        """
        if self.chunk_shape is None:
            return iter(())
        item = ITEM_BYTES[self.dtype]
        if corner is None:
            return enumerate(chunks(self.shape, self.chunk_shape, item_bytes=item))
        _check_shard(self, shape, corner)
        counts = chunk_counts(self.shape, self.chunk_shape)
        spans = (
            range(begin // step, -(-(begin + size) // step))
            for begin, size, step in zip(corner, shape, self.chunk_shape, strict=True)
        )
        numbers = (number_of(position, counts) for position in itertools.product(*spans))
        steps = tuple(map(min, self.chunk_shape, whole(shape)))
        return zip(numbers, chunks(shape, steps, item_bytes=item), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the arrays of a state are stored.

    Attributes:
        pages: The arrays of each page, in path order.
        chunk_bytes: Bytes of the largest chunk there may be.
        is_contiguous: True when each chunk is one run of its array's bytes.
    """

    pages: tuple[tuple[ArrayPlan, ...], ...]
    chunk_bytes: int
    is_contiguous: bool


def plan_arrays(
    arrays: Mapping[str, Described],
    *,
    chunk_bytes: int,
    tied: Mapping[str, str],
    grids: Mapping[str, Shape] | None = None,
) -> Plan:
    """Decide how arrays are stored.

    Args:
        arrays: The arrays by path, each with the shape of the whole array.
        chunk_bytes: Bytes of the largest chunks to make.
        tied: For each path that is another name of an array, the name that comes first.
        grids: Chunk shapes for arrays that several processes hold a shard of, by path. These are
            never put into a bundle. Other arrays are cut into contiguous chunks.

    Raises:
        InvalidInputError: A grid does not fit its array, or its chunks are too large.
    """
    grids = grids or {}
    planned = [
        _planned(path, arrays[path], chunk_bytes, tied.get(path), grids) for path in sorted(arrays)
    ]
    parts = cut([(item.path, item.digest_count) for item in planned])
    given = [(arrays[path], grid) for path, grid in grids.items()]
    return Plan(
        pages=tuple(tuple(planned[part]) for part in parts),
        chunk_bytes=max(chunk_bytes, *(_bytes(array, grid) for array, grid in given), 0),
        is_contiguous=all(is_contiguous(array.shape, grid) for array, grid in given),
    )


def _planned(
    path: str, array: Described, chunk_bytes: int, tied: str | None, grids: Mapping[str, Shape]
) -> ArrayPlan:
    grid = grids.get(tied or path) if grids else None
    if grid is not None:
        _check_grid(path, array, grid)
    elif 0 < array.nbytes < SMALL_BYTES:
        return ArrayPlan(path, array.dtype, array.shape, None, None, array.order)
    else:
        item = ITEM_BYTES[array.dtype]
        grid = chunk_shape(array.shape, item_bytes=item, chunk_bytes=chunk_bytes)
    return ArrayPlan(path, array.dtype, array.shape, grid, tied, array.order)


def _bytes(array: Described, grid: Shape) -> int:
    return math.prod(grid) * ITEM_BYTES[array.dtype]


def _check_grid(path: str, array: Described, grid: Shape) -> None:
    if not is_grid(array.shape, grid):
        raise InvalidInputError(
            f"{shown(path)} of shape {array.shape} has no chunks of shape {grid}: the same number "
            "of dimensions is expected, each at least 1 and no longer than the array's."
        )
    if _bytes(array, grid) > CHUNK_BYTES_MAX:
        raise InvalidInputError(
            f"Chunks of shape {grid} of {shown(path)} have {_bytes(array, grid)} bytes; at most "
            f"{CHUNK_BYTES_MAX} are allowed."
        )


def _check_shard(array: ArrayPlan, shape: Shape, corner: Shape) -> None:
    assert array.chunk_shape is not None
    fits = len(shape) == len(corner) == len(array.shape) and all(
        begin >= 0 and begin % step == 0 and _ends(begin + size, step, length)
        for begin, size, step, length in zip(
            corner, shape, array.chunk_shape, array.shape, strict=True
        )
    )
    if not fits:
        raise InvalidInputError(
            f"The shard of shape {shape} at {corner} of {shown(array.path)} does not consist of "
            f"whole chunks of shape {array.chunk_shape}."
        )


def _ends(end: int, step: int, length: int) -> bool:
    """True when a chunk ends there."""
    return end == length or (end < length and end % step == 0)

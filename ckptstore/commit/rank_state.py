"""RankState: the part of a state that one rank of a sharded training holds.

A DTensor is a shard: its place in the whole array follows from its layout, which all ranks know, so
they agree on grids, and on who puts what several of them hold, without a message. ADR 0069.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.dtensor import Layout, is_sharded, local_of
from ckptstore.arrays.source import TENSOR
from ckptstore.commit.flatten import flatten
from ckptstore.commit.grid import grid_of
from ckptstore.commit.shards import Shard, is_small
from ckptstore.documents.boxes import Box
from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.boxes import Shape
    from ckptstore.state.flatten import Flat

Grids = "Mapping[tuple[str, str, Shape], Shape]"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """A state taken apart on one rank.

    Attributes:
        flat: Its structure and arrays; of DTensors the boxes that this rank holds.
        layouts: Those of the DTensors by path.
    """

    flat: Flat[ArraySource]
    layouts: Mapping[str, Layout]

    @classmethod
    def of(cls, value: object) -> RankState:
        """Take a state apart.

        Raises:
            UnsupportedValueError: A value has no representation; the message names its path.
        """
        layouts: dict[int, tuple[ArraySource, Layout]] = {}

        def describe(item: object) -> ArraySource | None:
            if not is_sharded(item):
                return arrays.describe(item)
            layout = Layout.of(item)
            source = arrays.describe(local_of(item))
            assert source is not None, "a part of a tensor is one"
            source.order = None
            layouts[id(source)] = (source, layout)
            return source

        flat = flatten(value, describe=describe)
        return cls(
            flat=flat,
            layouts={
                path: layouts[id(source)][1]
                for path, source in flat.arrays.items()
                if id(source) in layouts
            },
        )

    def staged(self, copies: Flat[ArraySource]) -> RankState:
        """The same state in copies of its arrays."""
        found = {
            path: _cuttable(source) if path in self.layouts else source
            for path, source in copies.arrays.items()
        }
        return replace(self, flat=replace(copies, arrays=found))

    def shards(
        self, rank: int, *, grids: Mapping[tuple[str, str, Shape], Shape], chunk_bytes: int
    ) -> Iterator[Shard]:
        """Yield what this rank has to put of the DTensors.

        Args:
            rank: This one.
            grids: The chunk shapes of the parent's arrays by path, dtype and shape.
            chunk_bytes: Bytes of the largest chunks.
        """
        for path, layout in self.layouts.items():
            source = self.flat.arrays[path]
            holders = layout.holders()
            if 0 not in dict(layout.boxes):
                continue  # ranks of another mesh, which rank 0 is of, have the same
            first = self.flat.tied.get(path, path)  # both names of an array are put by one rank
            if holders[zlib.crc32(first.encode()) % len(holders)] != rank:
                continue
            item = ITEM_BYTES[source.dtype]
            grid = None
            if not is_small(Box((), layout.shape).size * item):
                grid = grid_of(
                    layout.shape,
                    [box for _, box in layout.boxes],
                    item_bytes=item,
                    chunk_bytes=chunk_bytes,
                    before=grids.get((path, source.dtype, layout.shape)),
                )
            yield Shard(
                path=path, shape=layout.shape, corner=layout.box.corner, source=source, grid=grid
            )

    def wholes(self) -> Iterator[Shard]:
        """Yield the arrays that this rank holds whole."""
        for path, source in self.flat.arrays.items():
            if path not in self.layouts:
                whole = replace(source, order=None)
                corner = (0,) * len(source.shape)
                yield Shard(path=path, shape=source.shape, corner=corner, source=whole)


def _cuttable(source: ArraySource) -> ArraySource:
    """A copied array with an array of its framework, of which parts can be taken."""
    if source.kind != TENSOR or source.copied is None or not source.nbytes:
        return source
    import torch

    array: Any = torch.frombuffer(source.copied, dtype=torch.uint8)
    array = array.view(getattr(torch, source.dtype)).reshape(source.shape)
    return replace(source, array=array)

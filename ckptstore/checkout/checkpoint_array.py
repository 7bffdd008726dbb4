"""CheckpointArray: an array of a checkpoint whose chunks are read as it is indexed.

Only the chunks that an index touches are read, each checked against its digest. Read from begin to
end (a commit or an export does), a grid that is not contiguous goes through `Bands`, in bounded
memory. Arrays committed through Zarr are `ckptstore.zarr.array.ZarrArray`.

ADR 0022, ADR 0048; docs/reference/format.md, section 10.2.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.bands import Bands
from ckptstore.arrays.index import touched, wanted
from ckptstore.arrays.indexed import IndexedArray
from ckptstore.checkout.reader import read_bundled, reading_threads
from ckptstore.documents.chunks import chunk_counts, is_contiguous, number_of, stored_order
from ckptstore.documents.dtypes import ITEM_BYTES, word
from ckptstore.forks import cached_property
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle
    from ckptstore.store.objects import ObjectStore

    Reading = Callable[[], AbstractContextManager[None]]


class CheckpointArray(IndexedArray):
    """An array of a state, in chunks or in its page's bundle."""

    def __init__(
        self,
        entry: ArrayEntry,
        bundle: Bundle | None,
        *,
        kind: str,
        objects: ObjectStore,
        reading: Reading,
    ) -> None:
        self.path, self.kind = entry.path, kind
        self.dtype, self.shape = entry.dtype, entry.shape
        self.identity, self.order = object(), entry.order
        self._entry, self._bundle = entry, None if entry.offset is None else bundle
        self._objects, self._reading = objects, reading

    def stored(self) -> CheckpointArray:
        """The array with its dimensions in the order in which it is stored."""
        entry = replace(self._entry, shape=self._entry.stored_shape, order=None)
        return CheckpointArray(
            entry, self._bundle, kind=self.kind, objects=self._objects, reading=self._reading
        )

    def __getitem__(self, index: object) -> Any:
        """Read a part."""
        chosen = wanted(index, self.shape)
        array, memory = arrays.allocate(self.kind, self.dtype, chosen.shape)
        if math.prod(chosen.shape):
            self._fill(chosen.ranges, memory)
        return array

    def _fill(self, ranges: tuple[range, ...], memory: memoryview) -> None:
        """Read the elements at the crossings of some ranges, in C order."""
        import numpy as np

        made = np.frombuffer(memory, word(self.dtype)).reshape(tuple(map(len, ranges)))
        if self.order is not None:
            made, ranges = made.transpose(self.order), stored_order(ranges, self.order)
        largest = math.prod(self._entry.stored_chunk_shape) * made.itemsize
        with self._reading():
            threads = reading_threads(self._objects, largest)
            gather(list(self._copies(ranges, made)), threads=threads)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        if self._bands:
            self._bands.read_into(buffer, start)
            return
        with self._reading():
            end = start + len(buffer)
            first = bisect_right(self._runs, start, key=itemgetter(1)) - 1
            for digest, begin, size in islice(self._runs, max(0, first), None):
                low, high = max(start, begin), min(end, begin + size)
                if low >= high:
                    break
                part = buffer[low - start : high - start]
                if high - low == size and self._bundle is None:
                    self._objects.read_into(digest, part)
                else:
                    part[:] = self._chunk(digest, size)[low - begin : high - begin]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """The start and size of each chunk; runs of whole chunks where these are not contiguous."""
        if self._bands:
            return self._bands.pieces()
        return ((start, size) for _, start, size in self._runs)

    @cached_property
    def _runs(self) -> list[tuple[Digest, int, int]]:
        """The digest, start and size of each chunk of a contiguous grid, in C order."""
        return [(digest, chunk.start or 0, chunk.size) for digest, chunk in self._entry.grid()]

    @cached_property
    def _bands(self) -> Bands | None:
        """How to read an array in C order whose grid is not contiguous."""
        chunk_shape = self._entry.shown_chunk_shape
        if self.order is None and is_contiguous(self.shape, chunk_shape):
            return None
        return Bands(
            self.path,
            shape=self.shape,
            chunk_shape=chunk_shape,
            item_bytes=ITEM_BYTES[self.dtype],
            read=self._box,
        )

    def _box(self, index: tuple[slice, ...]) -> memoryview:
        """The bytes of a part of the array, in C order."""
        import numpy as np

        chosen = wanted(index, self.shape)
        fresh: Any = np.empty(math.prod(chosen.shape) * ITEM_BYTES[self.dtype], np.uint8)
        self._fill(chosen.ranges, memoryview(fresh))
        return memoryview(fresh)

    def _chunk(self, digest: Digest, size: int) -> memoryview:
        """All bytes of a chunk, checked."""
        if self._bundle is not None:
            return read_bundled(self._bundle, self._entry, self._objects)
        data = memoryview(bytearray(size))
        self._objects.read_into(digest, data)
        return data

    def _copies(self, ranges: tuple[range, ...], made: Any) -> Iterator[Callable[[], object]]:
        """Yield a job for each chunk that is touched: read it, and copy what is wanted of it.

        ranges, made: in stored order.
        """
        steps, lengths = self._entry.stored_chunk_shape, self._entry.stored_shape
        counts = chunk_counts(lengths, steps)
        axes = [list(touched(part, step)) for part, step in zip(ranges, steps, strict=True)]
        for parts in itertools.product(*axes):
            position = [part[0] for part in parts]
            shape = tuple(
                min(step, length - number * step)
                for number, step, length in zip(position, steps, lengths, strict=True)
            )
            inside = tuple(part[1] for part in parts)
            target = made[(*(part[2] for part in parts), ...)]  # a view, also of 0 dimensions
            digest = self._entry.digests[number_of(position, counts)]
            yield partial(self._copy, digest, shape, inside, target)

    def _copy(
        self, digest: Digest, shape: tuple[int, ...], inside: tuple[slice, ...], target: Any
    ) -> None:
        """Read one chunk; straight into the result if that holds all of it in the same order."""
        import numpy as np

        size = math.prod(shape) * target.itemsize
        if target.shape == shape and target.flags.c_contiguous and self._bundle is None:
            self._objects.read_into(digest, memoryview(target.reshape(-1).view(np.uint8)))
            return
        data = np.frombuffer(self._chunk(digest, size), target.dtype)
        target[...] = data.reshape(shape)[inside]

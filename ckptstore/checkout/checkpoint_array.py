"""CheckpointArray: an array of a checkpoint that is read as it is indexed."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from functools import cached_property, partial
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.index import touched, wanted
from ckptstore.arrays.indexed import IndexedArray
from ckptstore.checkout.reader import READ_THREADS
from ckptstore.documents.chunks import chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle
    from ckptstore.store.objects import ObjectStore

    Reading = Callable[[], AbstractContextManager[None]]

_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


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
        self.identity = object()
        self._entry, self._bundle = entry, None if entry.offset is None else bundle
        self._objects, self._reading = objects, reading

    def __getitem__(self, index: object) -> Any:
        """Read a part."""
        import numpy as np

        chosen = wanted(index, self.shape)
        array, memory = arrays.allocate(self.kind, self.dtype, chosen.shape)
        if math.prod(chosen.shape):
            word = _WORDS[ITEM_BYTES[self.dtype]]
            made = np.frombuffer(memory, word).reshape(tuple(map(len, chosen.ranges)))
            with self._reading():
                gather(list(self._copies(chosen.ranges, made)), threads=READ_THREADS)
        return array

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
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
        """The start and size of each chunk."""
        return ((start, size) for _, start, size in self._runs)

    @cached_property
    def _runs(self) -> list[tuple[Digest, int, int]]:
        """The digest, start and size of each chunk, in C order."""
        entry = self._entry
        if entry.offset is not None:
            return [(entry.digests[0], 0, entry.nbytes)]
        grid = chunks(entry.shape, entry.chunk_shape, item_bytes=ITEM_BYTES[entry.dtype])
        return [
            (digest, chunk.start, chunk.size)
            for digest, chunk in zip(entry.digests, grid, strict=True)
        ]

    def _chunk(self, digest: Digest, size: int) -> memoryview:
        """All bytes of a chunk, checked."""
        data = memoryview(bytearray(size))
        if self._bundle is not None:
            start = self._entry.offset
            self._objects.read_range(self._bundle.digest, data, start=start or 0, expected=digest)
        else:
            self._objects.read_into(digest, data)
        return data

    def _copies(self, ranges: tuple[range, ...], made: Any) -> Iterator[Callable[[], object]]:
        """What reads each chunk that is wanted, and copies what is wanted of it."""
        entry = self._entry
        steps = entry.chunk_shape if entry.offset is None else tuple(map(_at_least_one, self.shape))
        counts = [-(-length // step) for length, step in zip(self.shape, steps, strict=True)]
        axes = [list(touched(part, step)) for part, step in zip(ranges, steps, strict=True)]
        for parts in itertools.product(*axes):
            number = 0
            for (position, _, _), count in zip(parts, counts, strict=True):
                number = number * count + position
            shape = tuple(
                min(step, length - position * step)
                for (position, _, _), step, length in zip(parts, steps, self.shape, strict=True)
            )
            inside = tuple(part[1] for part in parts)
            target = made[(*(part[2] for part in parts), ...)]  # also of 0 axes a view
            yield partial(self._copy, entry.digests[number], shape, inside, target)

    def _copy(
        self, digest: Digest, shape: tuple[int, ...], inside: tuple[slice, ...], target: Any
    ) -> None:
        """Read one chunk; straight into the result where all of it is wanted, in the order in which it lies."""
        import numpy as np

        size = math.prod(shape) * target.itemsize
        if target.shape == shape and target.flags.c_contiguous and self._bundle is None:
            self._objects.read_into(digest, memoryview(target.reshape(-1).view(np.uint8)))
            return
        data = np.frombuffer(self._chunk(digest, size), target.dtype)
        target[...] = data.reshape(shape)[inside]


def _at_least_one(length: int) -> int:
    return max(1, length)

"""Bands: read an array in C order whose chunks are not contiguous runs of its bytes.

A *band* is one row of chunks along the first dimension. Small bands are read whole, a few rows at a
time. A band too large for memory is read once, a box of chunks at a time, into an unnamed temporary
file, and served from there. So memory stays bounded whatever the shape of array and chunks.

Used for arrays on any chunk grid: those of a checkpoint (ADR 0022) and those that zarr decodes.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO
from weakref import WeakKeyDictionary

from ckptstore.arrays.file import Scratch
from ckptstore.documents.chunks import runs
from ckptstore.errors import CorruptError
from ckptstore.forks import free_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Box = tuple[range, ...]

PIECE_BYTES = 8 << 20
BAND_BYTES_MAX = 16 << 20  # larger bands go through a file; a commit reads on 8 threads
BOX_BYTES = 32 << 20  # read at once into that file, unless one chunk is larger
BANDS_HELD = 3  # threads that read one behind the other are in at most two of them
HOLDERS_MAX = 16  # arrays that hold bands at once; the 8 threads of a commit are in at most 8


class Bands:
    """The bytes of an array with at least one dimension, in C order, by position.

    Args:
        path: Name of the array, for errors.
        shape: Its lengths.
        chunk_shape: Lengths of what is read at once.
        item_bytes: Size of an element.
        read: Returns the bytes, in C order, of a box of the array; dimensions that the index leaves
            out are taken whole.
        box_bytes: Size of what is read at once into a file, by default BOX_BYTES.
    """

    def __init__(
        self,
        path: str,
        *,
        shape: Sequence[int],
        chunk_shape: Sequence[int],
        item_bytes: int,
        read: Callable[[tuple[slice, ...]], memoryview],
        box_bytes: int | None = None,
    ) -> None:
        self._path, self._read, self._box_bytes = Path(path), read, box_bytes or BOX_BYTES
        self._shape, self._item = tuple(shape), item_bytes
        # Some writers give an empty array chunks of length 0.
        self._chunk_shape = tuple(max(1, step) for step in chunk_shape)
        self._row_bytes = math.prod(self._shape[1:]) * item_bytes
        self._band_bytes = self._chunk_shape[0] * self._row_bytes
        self._held: OrderedDict[int, Scratch] = OrderedDict()
        self._lock = free_in_child(Lock())

    @property
    def are_small(self) -> bool:
        """True for bands that are read whole, into memory."""
        return self._band_bytes <= BAND_BYTES_MAX

    def is_rows(self, buffer: memoryview, start: int) -> bool:
        """True for a buffer of whole rows of the first dimension, at least one, from `start` on."""
        size = len(buffer)
        return size > 0 and not start % self._row_bytes and not size % self._row_bytes

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`.

        Raises:
            CorruptError: What `read` returned is not as large as the box.
            StorageError: The folder for temporary files has no room for a band.
        """
        if not buffer:
            return
        if self.are_small:
            first = start // self._row_bytes
            last = -(-(start + len(buffer)) // self._row_bytes)
            data = self._box((slice(first, last),))
            buffer[:] = data[start - first * self._row_bytes :][: len(buffer)]
            return
        while buffer:
            number, within = divmod(start, self._band_bytes)
            part = buffer[: self._band_bytes - within]
            self._band(number).read_into(part, within)
            buffer, start = buffer[len(part) :], start + len(part)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """The start and size of runs of bytes worth reading at once: several small bands, or part
        of a large one.
        """
        nbytes = self._shape[0] * self._row_bytes
        if not nbytes:
            return
        step = PIECE_BYTES
        if self.are_small:
            step = self._band_bytes * max(1, PIECE_BYTES // self._band_bytes)
        for start in range(0, nbytes, step):
            yield start, min(step, nbytes - start)

    def release(self) -> None:
        """Drop the bands that are held, unless one is being read."""
        if self._lock.acquire(blocking=False):
            self._held.clear()
            self._lock.release()

    def _band(self, number: int) -> Scratch:
        _hold(self)
        with self._lock:
            if number not in self._held:
                band = Scratch(self._path)
                band.add(lambda file: self._write(number, file))
                self._held[number] = band
                if len(self._held) > BANDS_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(number)
            return self._held[number]

    def _box(self, index: tuple[slice, ...]) -> memoryview:
        """Read a box whose dimensions lie within the array."""
        data = self._read(index)
        lengths = [part.stop - part.start for part in index] + list(self._shape[len(index) :])
        expected = math.prod(lengths) * self._item
        if len(data) != expected:
            raise CorruptError(
                f"{self._path} gave {len(data)} bytes for a part of it that has {expected}."
            )
        return data

    def _write(self, number: int, file: BinaryIO) -> None:
        """Read a band into a file."""
        first = number * self._chunk_shape[0]
        rows = slice(first, min(first + self._chunk_shape[0], self._shape[0]))
        shape = (rows.stop - rows.start, *self._shape[1:])
        for box in boxes(shape, self._chunk_shape, self._item, self._box_bytes):
            data = self._box((rows, *(slice(part.start, part.stop) for part in box[1:])))
            written = 0
            for start, length in runs(shape, box):
                file.seek(start * self._item)
                file.write(data[written : written + length * self._item])
                written += length * self._item


_holders: WeakKeyDictionary[Bands, None] = WeakKeyDictionary()  # in order of their last use
_holders_lock = free_in_child(Lock())


def _hold(bands: Bands) -> None:
    """Note that an array holds bands; beyond `HOLDERS_MAX` the least recently read drops its own.

    A state keeps its arrays until it is written, and each band is an open file and disk space.
    """
    with _holders_lock:
        _holders.pop(bands, None)
        _holders[bands] = None
        oldest = next(iter(_holders)) if len(_holders) > HOLDERS_MAX else None
        if oldest is not None:
            del _holders[oldest]
    if oldest is not None:
        oldest.release()


def boxes(
    shape: Sequence[int], chunk_shape: Sequence[int], item_bytes: int, box_bytes: int
) -> Iterator[Box]:
    """Boxes of whole chunks that cover a band, as long in the last dimensions as memory allows."""
    steps = list(chunk_shape)
    size = math.prod(steps) * item_bytes
    for axis in reversed(range(1, len(shape))):
        times = min(-(-shape[axis] // steps[axis]), max(1, box_bytes // size))
        steps[axis] *= times
        size *= times
    axes = [range(0, length, step) for length, step in zip(shape, steps, strict=True)]
    for corner in itertools.product(*axes):
        yield tuple(
            range(low, min(low + step, length))
            for low, step, length in zip(corner, steps, shape, strict=True)
        )

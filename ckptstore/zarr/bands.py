"""Bands: the bytes of a chunked array in C order, when a row of its chunks exceeds memory.

The bytes of an array in C order pass through one row of chunks, a band, after another. A band that
is too large for memory is decoded once, a box of chunks at a time, into an unnamed temporary file
and read from there. Smaller bands never come here. See docs/adr/0016.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Box = tuple[range, ...]

BOX_BYTES = 32 << 20  # decoded at once, unless one chunk is larger
BANDS_HELD = 3  # per array; threads that read it in sequence are in two bands at most
HOLDERS_MAX = 16  # arrays that keep bands at once; the 8 threads of a commit read 8 at most


class Bands:
    """The bands of an array with at least one dimension.

    Args:
        path: The array's path, for errors.
        shape: The array's shape.
        chunk_shape: The shape of the chunks that are decoded whole.
        item_bytes: Bytes of an element.
        read: Returns the bytes of a box of the array, in C order.
    """

    def __init__(
        self,
        path: str,
        *,
        shape: Sequence[int],
        chunk_shape: Sequence[int],
        item_bytes: int,
        read: Callable[[tuple[slice, ...]], memoryview],
    ) -> None:
        self._path, self._read = Path(path), read
        self._shape, self._chunk_shape, self._item = tuple(shape), tuple(chunk_shape), item_bytes
        self.row_bytes = math.prod(self._shape[1:]) * item_bytes
        self.band_bytes = self._chunk_shape[0] * self.row_bytes
        self._held: OrderedDict[int, Scratch] = OrderedDict()
        self._lock = Lock()

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from byte `start` on.

        Raises:
            StorageError: The temporary folder has no room for a band.
        """
        while buffer:
            number, within = divmod(start, self.band_bytes)
            part = buffer[: self.band_bytes - within]
            self._band(number).read_into(part, within)
            buffer, start = buffer[len(part) :], start + len(part)

    def release(self) -> None:
        """Delete the decoded bands, unless one is being decoded."""
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

    def _write(self, number: int, file: BinaryIO) -> None:
        """Decode a band into a file."""
        first = number * self._chunk_shape[0]
        rows = slice(first, min(first + self._chunk_shape[0], self._shape[0]))
        shape = (rows.stop - rows.start, *self._shape[1:])
        for box in boxes(shape, self._chunk_shape, self._item):
            data = self._read((rows, *(slice(part.start, part.stop) for part in box[1:])))
            written = 0
            for start, length in runs(shape, box):
                file.seek(start * self._item)
                file.write(data[written : written + length * self._item])
                written += length * self._item


_holders: WeakKeyDictionary[Bands, None] = WeakKeyDictionary()  # least recently read first
_holders_lock = Lock()


def _hold(bands: Bands) -> None:
    """Register an array that keeps bands; beyond HOLDERS_MAX the least recently read drops its own.

    A state keeps all of its arrays until it is written, and each band is an open file that takes
    disk space.
    """
    with _holders_lock:
        _holders.pop(bands, None)
        _holders[bands] = None
        oldest = next(iter(_holders)) if len(_holders) > HOLDERS_MAX else None
        if oldest is not None:
            del _holders[oldest]
    if oldest is not None:
        oldest.release()


def boxes(shape: Sequence[int], chunk_shape: Sequence[int], item_bytes: int) -> Iterator[Box]:
    """Boxes of whole chunks that cover a band, extended along the last axes up to BOX_BYTES."""
    steps = list(chunk_shape)
    size = math.prod(steps) * item_bytes
    for axis in reversed(range(1, len(shape))):
        times = min(-(-shape[axis] // steps[axis]), max(1, BOX_BYTES // size))
        steps[axis] *= times
        size *= times
    axes = [range(0, length, step) for length, step in zip(shape, steps, strict=True)]
    for corner in itertools.product(*axes):
        yield tuple(
            range(low, min(low + step, length))
            for low, step, length in zip(corner, steps, shape, strict=True)
        )

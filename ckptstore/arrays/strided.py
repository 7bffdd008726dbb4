"""Arrays in files, whose elements are gathered in C order with bounded memory.

Where a span of the file is needed densely it is read whole, otherwise in parts. Elements that are
needed sparsely cost more reads than they have bytes: see docs/adr/0025.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.arrays.bands import Bands
from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.chunks import (
    DIMENSIONS_MAX,
    LENGTH_MAX,
    chunk_shape,
    order_of,
    stored_order,
)
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.arrays.file import ByteSource

SPAN_BYTES_MAX = 4 << 20  # read at once by each of a commit's 8 threads
CHEAP_BYTES = 32 << 10  # reading these takes about as long as asking for them
RUN_BYTES = 8 << 10  # of an array in Fortran order, which is then in bands as long as its rows
DENSE = 4  # a larger span is read whole if at least every fourth byte of it is needed
_ELEMENTS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "V16"}  # by size; only copied


class ElementsArray(LazyArray):
    """An array that is read by whole elements.

    Args:
        kind: "tensor" or "ndarray".
        dtype: Name of the dtype, a key of `ITEM_BYTES`.
        shape: Lengths of the dimensions.
        identity: Equal for arrays that share their elements; None for an array that shares none.
        name: What holds the array, for errors.
    """

    def __init__(
        self,
        *,
        kind: str,
        dtype: str,
        shape: tuple[int, ...],
        identity: object = None,
        name: object = "",
    ) -> None:
        if len(shape) > DIMENSIONS_MAX:
            raise InvalidInputError(
                f"{name} has an array of {len(shape)} dimensions; a checkpoint holds at most "
                f"{DIMENSIONS_MAX}."
            )
        if max(shape, default=0) > LENGTH_MAX:
            raise InvalidInputError(f"{name} has an array of the shape {shown(shape)}.")
        self.kind, self.dtype, self.shape, self.identity = kind, dtype, shape, identity

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        item = ITEM_BYTES[self.dtype]
        first, skipped = divmod(start, item)
        if not skipped and not len(buffer) % item:
            self.read_elements(buffer, first)
            return
        end = -(-(start + len(buffer)) // item)
        whole = memoryview(bytearray((end - first) * item))
        self.read_elements(whole, first)
        buffer[:] = whole[skipped : skipped + len(buffer)]

    @abstractmethod
    def read_elements(self, buffer: memoryview, first: int) -> None:
        """Fill a buffer with the elements from number `first` on, counted in C order."""


class BoxesArray(ElementsArray):
    """An array that is read by boxes of elements."""

    def read_elements(self, buffer: memoryview, first: int) -> None:
        """Fill a buffer with the elements from number `first` on, counted in C order."""
        if not buffer:
            return
        flat = np.frombuffer(buffer, dtype=_ELEMENTS[ITEM_BYTES[self.dtype]])
        begin = 0
        for origin, lengths in boxes(self.shape, first, first + len(flat)):
            end = begin + math.prod(lengths)
            self.read_box(flat[begin:end].reshape(lengths), origin)
            begin = end

    @abstractmethod
    def read_box(self, target: Any, origin: tuple[int, ...]) -> None:
        """Fill a numpy array with the box of its shape that begins at this index."""


class FileArray(BoxesArray):
    """An array whose elements are in a file, little-endian, and known to be within it.

    Args:
        file: What to read.
        kind: "tensor" or "ndarray".
        dtype: Name of the dtype, a key of `ITEM_BYTES`.
        shape: Lengths of the dimensions.
        offset: Position of the first byte.
        strides: Bytes from one element to the next along each dimension, none negative; by default
            those of an array in C order.
        identity: Equal for arrays that share their elements; None for an array that shares none.

    Raises:
        InvalidInputError: It has more dimensions than a checkpoint can hold.
    """

    def __init__(
        self,
        file: ByteSource,
        *,
        kind: str,
        dtype: str,
        shape: tuple[int, ...],
        offset: int,
        strides: tuple[int, ...] | None = None,
        identity: object = None,
    ) -> None:
        super().__init__(kind=kind, dtype=dtype, shape=shape, identity=identity, name=file.path)
        self.file, self.offset = file, offset
        item = ITEM_BYTES[dtype]
        self.strides = own = c_strides(shape, item)
        if strides is not None:
            self.strides = strides
            if not any(step % item for step in strides):
                self.order = order_of(shape, [step // item for step in strides])
        steps = zip(shape, self.strides, own, strict=True)
        self._is_contiguous = all(step == own or length == 1 for length, step, own in steps)

    def stored(self) -> LazyArray:
        """The array with its dimensions in the order of its bytes in the file."""
        if self.order is None:
            return self
        return FileArray(
            self.file,
            kind=self.kind,
            dtype=self.dtype,
            shape=stored_order(self.shape, self.order),
            offset=self.offset,
            identity=self.identity,
        )

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        if self._is_contiguous:
            self.file.read_into(buffer, self.offset + start)
        else:
            super().read_into(buffer, start)

    def read_box(self, target: Any, origin: tuple[int, ...]) -> None:
        """Fill a numpy array with the box of its shape that begins at this index."""
        steps = zip(origin, self.strides, strict=True)
        gather(self.file, self.offset + sum(at * step for at, step in steps), self.strides, target)


class FortranArray(FileArray):
    """An array in Fortran order; a large one is transposed by way of a temporary file.

    Its chunks are runs of the file, so each byte is read a bounded number of times (see `Bands`).
    """

    def __init__(
        self, file: ByteSource, *, kind: str, dtype: str, shape: tuple[int, ...], offset: int
    ) -> None:
        item = ITEM_BYTES[dtype]
        strides = c_strides(shape[::-1], item)[::-1]
        super().__init__(file, kind=kind, dtype=dtype, shape=shape, offset=offset, strides=strides)
        run = chunk_shape(shape[::-1], item_bytes=item, chunk_bytes=RUN_BYTES)[::-1]
        self._bands = Bands(
            str(file.path),
            shape=shape,
            chunk_shape=run,
            item_bytes=item,
            read=self._box,
            box_bytes=2 * SPAN_BYTES_MAX,
        )

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        if self._bands.are_small and self._bands.is_rows(buffer, start):
            super().read_into(buffer, start)  # gathered in place: a band would be a copy more
        else:
            self._bands.read_into(buffer, start)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (start, length) in bytes of the pieces in which to read all of the array."""
        return self._bands.pieces()

    def _box(self, index: tuple[slice, ...]) -> memoryview:
        """The bytes of a box in C order; dimensions that the index leaves out are taken whole."""
        ends = [(part.start, part.stop) for part in index]
        ends += [(0, length) for length in self.shape[len(ends) :]]
        box = np.empty([stop - start for start, stop in ends], _ELEMENTS[ITEM_BYTES[self.dtype]])
        self.read_box(box, tuple(start for start, _ in ends))
        data: Any = box.reshape(-1).view(np.uint8)
        return memoryview(data)


class ChangedArray(ElementsArray):
    """Another array whose elements are changed as they are read.

    Args:
        array: The other array.
        change: Changes a buffer of elements in place.
        identity: As of any array.
    """

    def __init__(
        self, array: LazyArray, change: Callable[[memoryview], None], *, identity: object
    ) -> None:
        super().__init__(kind=array.kind, dtype=array.dtype, shape=array.shape, identity=identity)
        self.array, self.change, self.order = array, change, array.order

    def stored(self) -> LazyArray:
        """The array with its dimensions in the order of the other one's bytes."""
        return ChangedArray(self.array.stored(), self.change, identity=self.identity)

    def read_elements(self, buffer: memoryview, first: int) -> None:
        """Fill a buffer with the elements from number `first` on, counted in C order."""
        self.array.read_into(buffer, first * ITEM_BYTES[self.dtype])
        if buffer:
            self.change(buffer)


def byteswap(part_bytes: int) -> Callable[[memoryview], None]:
    """Return a change that reverses the bytes of each number; a complex number counts as two."""

    def swap(buffer: memoryview) -> None:
        np.frombuffer(buffer, dtype=f"u{part_bytes}").byteswap(inplace=True)

    return swap


def c_strides(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """The strides, in bytes, of an array in C order."""
    strides = []
    for length in reversed(shape):
        strides.append(item_bytes)
        item_bytes *= length
    return tuple(reversed(strides))


def boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Divide a run of elements in C order into boxes; yield the origin and shape of each."""
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    rest = shape[1:]
    inner = math.prod(rest)
    first, begin = divmod(start, inner)
    last, end = divmod(stop, inner)
    if begin:
        for origin, lengths in boxes(rest, begin, end if first == last else inner):
            yield (first, *origin), (1, *lengths)
        if first == last:
            return
        first += 1
    if first < last:
        yield (first, *(0 for _ in rest)), (last - first, *rest)
    for origin, lengths in boxes(rest, 0, end):
        yield (last, *origin), (1, *lengths)


def gather(file: ByteSource, offset: int, strides: tuple[int, ...], target: Any) -> None:
    """Fill a numpy array with elements of a file that are `strides` bytes apart."""
    item, lengths = target.itemsize, target.shape
    steps = list(zip(lengths, strides, strict=True))
    span = item + sum((length - 1) * step for length, step in steps)
    if strides == c_strides(lengths, item) and target.flags.c_contiguous:
        file.read_into(memoryview(target.reshape(-1).view(np.uint8)), offset)
        return
    wanted = item * math.prod(length for length, step in steps if step)
    at_once = SPAN_BYTES_MAX if wanted * DENSE >= span else CHEAP_BYTES
    if span <= at_once or span == item:
        data = bytearray(span)
        file.read_into(memoryview(data), offset)
        target[...] = np.ndarray(lengths, target.dtype, data, strides=strides)
        return
    axis = max((step, axis) for axis, (length, step) in enumerate(steps) if length > 1)[1]
    length, step = steps[axis]
    count = max(1, (at_once - span) // step + length)
    before = (slice(None),) * axis
    for start in range(0, length, count):
        part = target[(*before, slice(start, start + count))]
        gather(file, offset + start * step, strides, part)

"""Arrays whose elements a file holds with strides, gathered in C order as they are wanted, with bounded memory.

A span of the file is read whole where enough of it is wanted, else only what is wanted of it; never by a map, whose pages
would count as this process's memory.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.chunks import DIMENSIONS_MAX
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.arrays.file import OpenFile

SPAN_BYTES_MAX = 4 << 20  # read at once; 8 threads of a commit do
CHEAP_BYTES = 32 << 10  # reading these costs about as much as asking for them
DENSE = 4  # at least every fourth byte of a larger span is wanted, or it is read in parts
_ELEMENTS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "V16"}  # by size; only copied


class ElementsArray(LazyArray):
    """An array that is read by whole elements."""

    def __init__(
        self, *, dtype: str, shape: tuple[int, ...], identity: object = None, name: object = ""
    ) -> None:
        if len(shape) > DIMENSIONS_MAX:
            raise InvalidInputError(
                f"{name} has an array of {len(shape)} dimensions; a checkpoint holds at most {DIMENSIONS_MAX}."
            )
        self.kind, self.dtype, self.shape, self.identity = "tensor", dtype, shape, identity

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
        """Fill a buffer with elements from the given one on, counted in C order."""


class BoxesArray(ElementsArray):
    """An array that is read by boxes of elements."""

    def read_elements(self, buffer: memoryview, first: int) -> None:
        """Fill a buffer with elements from the given one on, counted in C order."""
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


class StridedArray(BoxesArray):
    """A view with strides, in bytes and none of them negative, of what a file holds."""

    def __init__(
        self,
        file: OpenFile,
        *,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int,
        identity: object = None,
    ) -> None:
        super().__init__(dtype=dtype, shape=shape, identity=identity, name=file.path)
        self.file, self.strides, self.offset = file, strides, offset

    def read_box(self, target: Any, origin: tuple[int, ...]) -> None:
        """Fill a numpy array with the box of its shape that begins at this index."""
        steps = zip(origin, self.strides, strict=True)
        gather(self.file, self.offset + sum(at * step for at, step in steps), self.strides, target)


class ChangedArray(ElementsArray):
    """Another array, whose elements are changed when they are read. change: does that to a buffer of elements."""

    def __init__(
        self, array: LazyArray, change: Callable[[memoryview], None], *, identity: object
    ) -> None:
        super().__init__(dtype=array.dtype, shape=array.shape, identity=identity)
        self.array, self.change = array, change

    def read_elements(self, buffer: memoryview, first: int) -> None:
        """Fill a buffer with elements from the given one on, counted in C order."""
        self.array.read_into(buffer, first * ITEM_BYTES[self.dtype])
        if buffer:
            self.change(buffer)


def c_strides(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """The strides, in bytes, of an array that lies in C order."""
    strides = []
    for length in reversed(shape):
        strides.append(item_bytes)
        item_bytes *= length
    return tuple(reversed(strides))


def boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A run of elements, counted in C order, as boxes one behind the other: where each begins, and its shape."""
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


def gather(file: OpenFile, offset: int, strides: tuple[int, ...], target: Any) -> None:
    """Fill a numpy array of elements with those that lie in a file from `offset` on, so many bytes apart."""
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

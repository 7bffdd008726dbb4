"""ArraySource: an array of a state as bytes, and what a framework has to provide for that.

Bytes are little-endian, in C order or, for a commit, in the order of the array's memory (ADR 0048).
No copy is made where memory allows it, and elsewhere a copy of one chunk at a time. Which framework
an array belongs to is found in `ckptstore.arrays.frameworks`. See section 11 of
docs/reference/format.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.chunks import DIMENSIONS_MAX, Chunk, runs, stored_order
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.errors import UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TENSOR, NDARRAY = "tensor", "ndarray"  # the kinds of arrays in a structure
KINDS = {"torch": TENSOR, "numpy": NDARRAY}  # by the top-level module of the framework
JAX = "jax"
ALIKE = (JAX, "tensorflow", "keras")  # frameworks whose arrays are stored as those of numpy
Form = tuple[str, tuple[int, ...]]
REPEATED_BYTES_MAX = 1 << 30  # a view that repeats its elements is stored in full up to this size


class Framework(Protocol):
    """The arrays of one framework.

    array_type: the type of its arrays. A module of `ckptstore.arrays` implements this; it imports
    its framework, and is itself imported only when an array is met or has to be made.
    """

    array_type: type | tuple[type, ...]

    def describe(self, array: Any) -> ArraySource:
        """How to read an array; UnsupportedValueError, without a path, for one that is refused."""

    def form_of(self, array: Any) -> Form:
        """The dtype, as checkpoints name it, and the shape of an array."""
        return str(array.dtype).removeprefix("torch."), tuple(array.shape)

    def open(self, array: Any) -> Any:
        """Return the array, if it can be filled in place, else memory for `assign`."""
        return array

    def assign(self, array: Any, memory: Any) -> None:
        """Assign the memory that `open` returned, once it is filled, to an array."""
        del array, memory

    def memory(self, array: Any) -> memoryview | None:
        """The bytes of an array; None where they are not one run of this process's memory."""

    def join(self, arrays: Sequence[Any], data: memoryview) -> None:
        """Copy the elements of small arrays to a buffer of their size, one behind the other."""

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
        """A new, writable array in the memory of the processor, and its bytes."""

    def copy_in(self, array: Any, data: memoryview) -> None:
        """Fill an array, whatever its strides and device, with elements of its dtype."""

    def copy_out(self, array: Any, data: memoryview) -> None:
        """Copy the elements of an array to a buffer of their size, which is not 0."""

    def in_order(self, array: Any, order: Sequence[int]) -> Any:
        """A view of an array with its dimensions in another order."""

    def unwritable(self, array: Any) -> str | None:
        """Why an array cannot be filled in place; None when it can."""

    def end_of(self, array: Any) -> Callable[[], bool] | None:
        """A function that is true once the memory of an array is gone; None where unknown."""

    def to_device(self, array: Any, device: Any) -> Any:
        """The array on a device; InvalidInputError where there is no such device."""


@dataclass(slots=True)  # neither frozen nor kw_only: these cost 1 us and 0.2 us for each array
class ArraySource:
    """An array of a state, ready to be read chunk by chunk. Never changed once made.

    identity: equal for two names of the same memory, which makes tied weights tied; None when that
    means nothing. array: of the framework, or a LazyArray, which has none. order: its dimensions in
    the order of its memory, None for C order and for memory with gaps. copied: a copy of its bytes,
    to which nothing else writes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    identity: object
    array: Any
    framework: Framework | None
    order: tuple[int, ...] | None = None
    copied: memoryview | None = None

    def stored(self) -> ArraySource:
        """The array with its dimensions in the order of its memory, of which it is one run."""
        if self.order is None:
            return self
        return replace(
            self,
            shape=stored_order(self.shape, self.order),
            array=self.array.stored()
            if self.framework is None
            else self.framework.in_order(self.array, self.order),
        )

    @property
    def flat(self) -> memoryview | None:
        """The bytes of the array, where they are contiguous in memory.

        Not kept: of thousands of small arrays most are never asked for.
        """
        if self.copied is None and self.framework is not None:
            return self.framework.memory(self.array)
        return self.copied

    @property
    def has_memory(self) -> bool:
        """True when `flat` is not None, or the array is too small for that to matter."""
        return self.nbytes < SMALL_BYTES or self.flat is not None

    @property
    def is_private(self) -> bool:
        """True when nothing else writes to `flat`."""
        return self.copied is not None

    def chunk(self, chunk: Chunk, buffer: Callable[[int], memoryview]) -> memoryview:
        """The bytes of one chunk: a slice of the array's memory if `has_run`, else a copy.

        buffer: returns writable memory of a size, which holds the chunk until it is called again.
        """
        flat = self.flat if chunk.start is not None else None
        if flat is not None and chunk.start is not None:
            return flat[chunk.start : chunk.start + chunk.size]
        data = buffer(chunk.size)
        if self.framework is not None and self.array is not None:
            self.framework.copy_out(part_of(self.array, chunk), data)
        elif chunk.start is not None:
            self.array.read_into(data, chunk.start)
        else:
            self._copy_runs(chunk, data)
        return data

    def has_run(self, chunk: Chunk) -> bool:
        """True for a chunk that is a slice of the array's memory."""
        return self.flat is not None and chunk.start is not None

    def _copy_runs(self, chunk: Chunk, data: memoryview) -> None:
        """Copy a chunk that is not one run of the array's bytes, run by run."""
        item, filled = ITEM_BYTES[self.dtype], 0
        box = [range(part.start, part.stop) for part in chunk.index]
        for first, length in runs(self.shape, box):
            start, size = first * item, length * item
            part = data[filled : filled + size]
            if self.copied is not None:
                part[:] = self.copied[start : start + size]
            else:
                self.array.read_into(part, start)
            filled += size

    def pieces(self) -> Iterator[memoryview]:
        """All bytes, piece by piece; a piece of a lazy array is valid until the next is read."""
        if not isinstance(self.array, LazyArray):
            yield self.whole()
            return
        buffer = bytearray()
        for start, size in self.array.pieces():
            if len(buffer) < size:
                buffer = bytearray(size)
            part = memoryview(buffer)[:size]
            self.array.read_into(part, start)
            yield part

    def whole(self) -> memoryview:
        """All bytes."""
        flat = self.flat
        if flat is not None:
            return flat
        data = memoryview(bytearray(self.nbytes))
        return self.chunk(Chunk(0, self.nbytes, ()), lambda _: data) if data else data


def part_of(array: Any, chunk: Chunk) -> Any:
    """A view of a chunk of an array. Indexing costs microseconds, which the whole array saves."""
    return array if chunk.size == array.nbytes else array[chunk.index]


def refuse_layout(shape: tuple[int, ...], stride_bytes: Sequence[int], item_bytes: int) -> None:
    """Raise for an array that no page can list, and for a small one that poses as a huge one."""
    if len(shape) > DIMENSIONS_MAX:
        raise UnsupportedValueError(
            f"has {len(shape)} dimensions; a checkpoint holds at most {DIMENSIONS_MAX}"
        )
    nbytes = math.prod(shape) * item_bytes
    if nbytes > REPEATED_BYTES_MAX and nbytes > extent(shape, stride_bytes, item_bytes):
        raise UnsupportedValueError(
            f"would take {nbytes / 1e9:.0f} GB. It repeats its elements in memory (an expanded "
            "view): store what it was made from."
        )


def extent(shape: tuple[int, ...], strides: Sequence[int], item: int) -> int:
    """The distance from the first to the end of the last element in memory."""
    steps = zip(shape, strides, strict=True)
    return item + sum((length - 1) * abs(stride) for length, stride in steps)

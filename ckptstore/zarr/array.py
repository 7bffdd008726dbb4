"""ZarrArray: an array that was committed through Zarr, read lazily.

zarr-python decodes; this module bounds how much memory that takes and turns its errors into those
of ckptstore. See docs/adr/0016.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.bands import BOX_BYTES, Bands
from ckptstore.arrays.index import wanted
from ckptstore.arrays.indexed import IndexedArray
from ckptstore.arrays.memory_limit import check_memory, check_unpacked
from ckptstore.arrays.source import NDARRAY
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError, first_line
from ckptstore.forks import cached_property, renewed
from ckptstore.zarr.encoding import INDEX_ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ckptstore.zarr.store import ContentStore, Stored

ABSENT_CHUNKS_MAX = 10_000
_NUMBERS = "iufc"
# A read takes several times the memory of what it decodes, and zarr-python has one pool of threads
# for all readers of a process.
READERS_MAX = 2
_reading = BoundedSemaphore(READERS_MAX)
renewed(_reading, lambda semaphore: semaphore.__init__(READERS_MAX))  # type: ignore[misc]


class ZarrArray(IndexedArray):
    """An array that zarr-python decodes.

    Attributes:
        chunk_shape: The shape of what is read and decoded at once: a shard, or a chunk of it where
            shards are large.
        dtype: The element type by its Zarr name, or "" for one that no state can hold (strings,
            dates). Such an array can only be indexed, which returns numpy arrays.
    """

    def __init__(self, store: ContentStore, path: str, *, kind: str = NDARRAY) -> None:
        array = _opened(store, path)
        name = _name(array.dtype)
        self.path, self.kind, self.identity = path, kind, object()
        self.dtype = name if name in ITEM_BYTES else ""
        self.shape = tuple(array.shape)
        self.chunk_shape = tuple(_read_at_once(array))
        self._array = array
        self._store = store
        self._is_checked = False

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, decoded."""
        return math.prod(self.shape) * int(self._array.dtype.itemsize)

    def __getitem__(self, index: object) -> Any:
        """Read a part by basic indexing."""
        selection = wanted(index, self.shape)
        self._check(selection.ranges)
        with _converted_errors(self.path):
            values = np.asarray(self._array[tuple(map(_ascending, selection.ranges))])
            flips = tuple(slice(None, None, -1 if r.step < 0 else 1) for r in selection.ranges)
            if any(part.step < 0 for part in flips):
                values = values[flips].copy()
            return self._in_framework(values).reshape(selection.shape)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes in C order, from byte `start` on."""
        self.check_whole()  # whatever reads bytes by position reads all of them
        if self.shape:
            self._bands.read_into(buffer, start)
        else:
            buffer[:] = self._read(())[start : start + len(buffer)]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (start, length) in bytes: a few MiB of whole bands, or a part of a large band."""
        return self._bands.pieces() if self.shape else iter([(0, self.nbytes)])

    def check_whole(self) -> None:
        """Raise InvalidInputError if the whole array claims far more than is stored of it."""
        if not self._is_checked:
            self._check_claim(tuple(map(range, self.shape)))
            self._is_checked = True

    def _check(self, ranges: Sequence[range]) -> None:
        """Check that a part fits in memory, and that it does not claim far more than is stored."""
        self._check_claim(ranges)
        check_memory([math.prod(map(len, ranges)) * int(self._array.dtype.itemsize)])

    def _check_claim(self, ranges: Sequence[range]) -> None:
        stored = self._stored
        name = f"The Zarr array {self.path!r:.200}"
        size = math.prod(map(len, ranges)) * int(self._array.dtype.itemsize)
        check_unpacked(name, size, stored=stored.nbytes, bytes_max=self._store.bytes_max)
        chunks = math.prod(
            len(part) and abs(part[-1] - part[0]) // step + 1
            for part, step in zip(ranges, self._array.chunks, strict=True)
        )
        if self._store.bytes_max is not None:
            return
        # A chunk that is absent is made of fill values, at the cost of one that is read.
        if chunks > ABSENT_CHUNKS_MAX + 2 * stored.values + stored.nbytes // INDEX_ENTRY_BYTES:
            raise InvalidInputError(
                f"{name} has {chunks:,} chunks in this part, of which at most {stored.values:,} "
                f"are stored; up to {ABSENT_CHUNKS_MAX:,} more are read at once. Read a smaller "
                f"part, or, if you trust it, allow its bytes (bytes_max={size})."
            )

    @cached_property
    def _stored(self) -> Stored:
        return self._store.stored(self._array.path)

    @cached_property
    def _bands(self) -> Bands:
        return Bands(
            self.path,
            shape=self.shape,
            chunk_shape=self.chunk_shape,
            item_bytes=int(self._array.dtype.itemsize),
            read=self._read,
        )

    def _read(self, index: Any) -> memoryview:
        with _reading, _converted_errors(self.path):
            return _bytes(self._array[index])

    def _in_framework(self, value: Any) -> Any:
        """The values as an array of the framework `kind`."""
        array = _native(value)
        if self.kind == NDARRAY or not self.dtype:
            return array if array.flags.owndata and array.flags.writeable else array.copy()
        return arrays.from_bytes(self.kind, self.dtype, array.shape, _bytes(array))


def _read_at_once(array: zarr.Array[Any]) -> tuple[int, ...]:
    """The shape of what is decoded at once: a shard, or a chunk where shards take much memory."""
    shards = array.shards or array.chunks
    is_small = math.prod(shards) * int(array.dtype.itemsize) <= BOX_BYTES
    return shards if is_small else array.chunks


def _ascending(part: range) -> slice:
    """The same elements in ascending order, the only one that zarr-python supports."""
    part = part if part.step > 0 else part[::-1]
    return slice(part.start, part.stop, part.step) if part else slice(0, 0)


def _opened(store: ContentStore, path: str) -> zarr.Array[Any]:
    """The array at a path.

    Its document was checked against its digest, so a document that zarr-python rejects is an
    InvalidInputError, not damage.
    """
    try:
        return zarr.open_array(store, path=path, mode="r")
    except (CkptStoreError, MemoryError):
        raise
    except (FileNotFoundError, NodeTypeValidationError) as error:
        raise CorruptError(
            f"The structure names {path!r:.200}, which is no array. Run verify."
        ) from error
    except Exception as error:
        raise InvalidInputError(
            f"zarr-python cannot open the array {path!r:.200}: {first_line(error)}. Install what "
            "it needs (a codec, a dtype), or leave the array out (exclude)."
        ) from error


@contextmanager
def _converted_errors(path: str) -> Iterator[None]:
    """Raise CorruptError for whatever zarr-python or a codec raises."""
    try:
        yield
    except (CkptStoreError, MemoryError):
        raise
    except Exception as error:
        raise CorruptError(
            f"The Zarr array {path!r:.200} cannot be read: {first_line(error)}."
        ) from error


def _bytes(value: Any) -> memoryview:
    """The bytes of an array in C order, little-endian."""
    flat: Any = np.ascontiguousarray(_native(value)).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _native(value: Any) -> Any:
    """The array; one of numbers in the byte order of this machine."""
    array = np.asarray(value)
    if array.dtype.kind in _NUMBERS and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def _name(dtype: Any) -> str:
    """The name of a dtype, without its byte order."""
    return str(dtype.newbyteorder("=").name if dtype.kind in _NUMBERS else dtype.name)

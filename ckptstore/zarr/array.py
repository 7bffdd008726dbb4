"""ZarrArray: an array that came in through Zarr, read as it is indexed."""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import cached_property
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.errors import NodeTypeValidationError

from ckptstore.arrays import source as arrays
from ckptstore.arrays.index import wanted
from ckptstore.arrays.indexed import IndexedArray
from ckptstore.arrays.memory import check_memory
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError
from ckptstore.zarr.bands import BOX_BYTES, Bands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.zarr.store import ContentStore

PIECE_BYTES = 8 << 20
BAND_BYTES_MAX = 16 << 20  # of a row of chunks decoded to memory; a commit does it on 8 threads
_NUMBERS = "iufc"
# Each read takes several times the memory of what it decodes, and zarr-python's own threads are shared by all who read.
_reading = BoundedSemaphore(2)


class ZarrArray(IndexedArray):
    """An array that zarr-python decodes. chunk_shape: what is read and decoded at once.

    dtype: "" for one that no state can hold (texts, dates): then only indexing works, and gives numpy arrays.
    """

    def __init__(self, store: ContentStore, path: str, *, kind: str = arrays.NDARRAY) -> None:
        found = _opened(store, path)
        name = _name(found.dtype)
        self.path, self.kind, self.identity = path, kind, object()
        self.dtype = name if name in ITEM_BYTES else ""
        self.shape = tuple(found.shape)
        self.chunk_shape = tuple(_read_at_once(found))
        self._array = found

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, decoded."""
        return math.prod(self.shape) * int(self._array.dtype.itemsize)

    def __getitem__(self, index: object) -> Any:
        """Read a part."""
        chosen = wanted(index, self.shape)
        check_memory([math.prod(chosen.shape) * int(self._array.dtype.itemsize)])
        with _ours(self.path):
            found = np.asarray(self._array[tuple(map(_ascending, chosen.ranges))])
            backwards = tuple(slice(None, None, -1 if r.step < 0 else 1) for r in chosen.ranges)
            if any(part.step < 0 for part in backwards):
                found = found[backwards].copy()
            return self._made(found).reshape(chosen.shape)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        if not self.shape:
            buffer[:] = self._read(())[start : start + len(buffer)]
            return
        if not buffer:
            return
        bands = self._bands
        if bands.band_bytes > BAND_BYTES_MAX:
            bands.read_into(buffer, start)
            return
        first, last = start // bands.row_bytes, -(-(start + len(buffer)) // bands.row_bytes)
        data = self._read(slice(first, last))
        buffer[:] = data[start - first * bands.row_bytes :][: len(buffer)]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Runs of whole rows of chunks, of a few MiB where chunks are smaller; of larger ones a part."""
        if not self.nbytes:
            return
        if not self.shape:
            yield 0, self.nbytes
            return
        band = self._bands.band_bytes
        step = PIECE_BYTES if band > BAND_BYTES_MAX else band * max(1, PIECE_BYTES // band)
        for start in range(0, self.nbytes, step):
            yield start, min(step, self.nbytes - start)

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
        with _reading, _ours(self.path):
            return _bytes(self._array[index])

    def _made(self, value: Any) -> Any:
        """What was read, as the framework has it."""
        array = _native(value)
        if self.kind == arrays.NDARRAY or not self.dtype:
            return array if array.flags.owndata and array.flags.writeable else array.copy()
        return arrays.from_bytes(self.kind, self.dtype, array.shape, _bytes(array))


def _read_at_once(found: zarr.Array[Any]) -> tuple[int, ...]:
    """The shape of what is decoded at once: a chunk, or a shard of them unless that is too much for memory."""
    shards = found.shards or found.chunks
    is_small = math.prod(shards) * int(found.dtype.itemsize) <= BOX_BYTES
    return shards if is_small else found.chunks


def _ascending(part: range) -> slice:
    """The same elements as zarr-python takes them, from first to last."""
    found = part if part.step > 0 else part[::-1]
    return slice(found.start, found.stop, found.step) if found else slice(0, 0)


def _opened(store: ContentStore, path: str) -> zarr.Array[Any]:
    """The array. Its document is as it was set, so what zarr-python does not take in it is not damage."""
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
            f"zarr-python cannot open the array {path!r:.200}: {_said(error)}. Install what it needs (a codec, a dtype), or leave "
            "the array out (exclude)."
        ) from error


@contextmanager
def _ours(path: str) -> Iterator[None]:
    """Make an error of ours of what zarr-python or a codec raises."""
    try:
        yield
    except (CkptStoreError, MemoryError):
        raise
    except Exception as error:
        raise CorruptError(
            f"The Zarr array {path!r:.200} cannot be read: {_said(error)}."
        ) from error


def _said(error: Exception) -> str:
    """The first line of an error's message."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return said[:300].rstrip(".")


def _bytes(value: Any) -> memoryview:
    """The bytes of an array in C order, little-endian."""
    flat: Any = np.ascontiguousarray(_native(value)).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _native(value: Any) -> Any:
    """An array of numbers in this machine's byte order; any other as it is."""
    array = np.asarray(value)
    if array.dtype.kind in _NUMBERS and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def _name(dtype: Any) -> str:
    """The name of a dtype, whatever its byte order."""
    return str(dtype.newbyteorder("=").name if dtype.kind in _NUMBERS else dtype.name)

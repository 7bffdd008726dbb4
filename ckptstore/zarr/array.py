"""ZarrArray: an array that came in through Zarr, read as it is indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ckptstore import arrays
from ckptstore.checkpoint_array import IndexedArray
from ckptstore.errors import CorruptError
from ckptstore.format.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.zarr.store import ContentStore

PIECE_BYTES = 8 << 20


class ZarrArray(IndexedArray):
    """An array that zarr-python decodes. chunk_shape: what is read and decoded at once.

    dtype: "" for one that no state can hold (texts, dates): then only indexing works, and gives numpy arrays.
    """

    def __init__(self, store: ContentStore, path: str, *, kind: str = arrays.NDARRAY) -> None:
        try:
            found = zarr.open_array(store, path=path, mode="r")
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise CorruptError(f"The Zarr array {path!r} cannot be opened: {error}") from error
        name = found.dtype.newbyteorder("=").name
        self.path, self.kind, self.identity = path, kind, object()
        self.dtype = name if name in ITEM_BYTES else ""
        self.shape = tuple(found.shape)
        self.chunk_shape = tuple(found.shards or found.chunks)
        self._array = found

    def __getitem__(self, index: Any) -> Any:
        """Read a part."""
        return self._made(self._array[index])

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        if not self.shape:
            buffer[:] = _bytes(self._array[()])[start : start + len(buffer)]
            return
        row_bytes = self.nbytes // self.shape[0]
        first, last = start // row_bytes, -(-(start + len(buffer)) // row_bytes)
        data = _bytes(self._array[first:last])
        buffer[:] = data[start - first * row_bytes :][: len(buffer)]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Runs of whole rows of chunks, of a few MiB where chunks are smaller."""
        if not self.nbytes:
            return
        if not self.shape:
            yield 0, self.nbytes
            return
        row_bytes = self.nbytes // self.shape[0]
        band = self.chunk_shape[0] * row_bytes
        step = band * max(1, PIECE_BYTES // band)
        for start in range(0, self.nbytes, step):
            yield start, min(step, self.nbytes - start)

    def _made(self, value: Any) -> Any:
        """What was read, as the framework has it."""
        array = np.asarray(value)
        if array.dtype.kind not in "OSUMT" and not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if self.kind == arrays.NDARRAY or not self.dtype:
            return array if array.flags.owndata and array.flags.writeable else array.copy()
        return arrays.from_bytes(self.kind, self.dtype, array.shape, _bytes(array))


def _bytes(value: Any) -> memoryview:
    """The bytes of an array in C order, little-endian."""
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)

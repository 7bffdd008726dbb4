"""An array of a Zarr folder as `folder_write` writes it: uncompressed, each chunk in a file.

Arrays that another program has written differently are not read here: `folder_read` leaves them to
zarr-python.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents import zarr_document
from ckptstore.documents.chunks import DIMENSIONS_MAX, chunk_count, is_contiguous, is_grid
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import CkptStoreError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ARRAY_BYTES_MAX = (1 << 63) - 1  # numpy's limit, which also counts a length of 0 as 1


class FolderArray(LazyArray):
    """An array whose chunks are files of equal length.

    Names of chunks are computed, not listed: a document of a few bytes may claim any number of
    them.
    """

    def __init__(
        self, folder: Path, *, kind: str, dtype: str, shape: tuple[int, ...], steps: tuple[int, ...]
    ) -> None:
        self.kind, self.dtype, self.shape = kind, dtype, shape
        self.identity = object()
        self.chunk_count = chunk_count(shape, steps)
        self.chunk_bytes = zarr_document.padded_bytes(dtype, steps)
        cut = next((axis for axis, step in enumerate(steps) if step != 1), len(shape))
        self._row_bytes = (
            math.prod(shape[cut:]) * ITEM_BYTES[dtype]
        )  # of the axes from the divided one on
        self._row_chunks = chunk_count(shape[cut:], steps[cut:])
        self._folder = folder
        self._steps = steps

    @classmethod
    def of(cls, document: Mapping[str, Any], folder: Path, kind: str) -> FolderArray | None:
        """Return the array of a document, or None if `folder_write` writes none like it.

        Args:
            document: The zarr.json of the array.
            folder: The folder of the node.
            kind: "tensor" or "ndarray".
        """
        try:
            dtype, shape = zarr_document.described(document, name=str(folder))
            more = len(document["shape"]) - len(shape)
            grid = document["chunk_grid"]["configuration"]["chunk_shape"]
            steps = tuple(grid[: len(grid) - more])
            if not _is_possible(kind, dtype, shape) or any(type(step) is not int for step in steps):
                return None
            if not (is_grid(shape, steps) and is_contiguous(shape, steps)):
                return None
            ours = zarr_document.array_document(
                dtype=dtype, shape=shape, chunk_shape=steps, name=folder.name
            )
            fields = {key: value for key, value in document.items() if value or key in ours}
            if _text(fields) != _text(ours):  # as text: 0.0 equals -0.0, which has other bits
                return None
        except (CkptStoreError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return cls(folder, kind=kind, dtype=dtype, shape=shape, steps=steps)

    def has_chunk(self, key: str) -> bool:
        """Return whether a key is that of a chunk of this array."""
        return zarr_document.chunk_number(key, self.dtype, self.shape, self._steps) is not None

    def check_size(self, file: Path, size: int) -> None:
        """Raise InvalidInputError if a chunk's file does not have the length of a chunk."""
        if size != self.chunk_bytes:
            raise InvalidInputError(
                f"{file} has {size} bytes; by its document the array has chunks of "
                f"{self.chunk_bytes}. Write the folder again."
            )

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        while buffer:
            row, within = divmod(start, self._row_bytes)
            number, skip = divmod(within, self.chunk_bytes)
            stop = min(len(buffer), self.chunk_bytes - skip, self._row_bytes - within)
            key = zarr_document.chunk_key(
                row * self._row_chunks + number, self.dtype, self.shape, self._steps
            )
            file = OpenFile(self._folder / key, follow=False)
            self.check_size(file.path, file.nbytes)
            file.read_into(buffer[:stop], skip)
            buffer, start = buffer[stop:], start + stop


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_possible(kind: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether an array in memory can have this dtype and shape."""
    size = math.prod(max(1, length) for length in shape) * ITEM_BYTES[dtype]
    has_dtype = kind == "tensor" or zarr_document.has_name(dtype)  # numpy lacks the same as Zarr
    return len(shape) <= DIMENSIONS_MAX and size <= ARRAY_BYTES_MAX and has_dtype

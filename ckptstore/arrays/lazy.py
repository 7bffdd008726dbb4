"""LazyArray: an array that lies in a file or a repository, and is read as it is wanted.

A state may hold them wherever it may hold arrays. `commit` and the file formats read them a piece at a time, so what they
need of memory does not grow with the array.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES = 4 << 20


class LazyArray(ABC):
    """An array of this dtype (as in `ckptstore.documents.dtypes`) and shape.

    kind: "tensor" or "ndarray": what a checkout makes of it. identity: equal for two names of the same array, which then
    come out tied; None when that means nothing. Whoever makes one sets all four.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    identity: object = None

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @abstractmethod
    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`, as they lie in C order, little-endian.

        Called from several threads at once. Raises a CkptStoreError when they cannot be read, never fills in part silently.
        """

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Where to cut the array to read it from begin to end: the start and size of each piece, in bytes."""
        for start in range(0, self.nbytes, PIECE_BYTES):
            yield start, min(PIECE_BYTES, self.nbytes - start)

"""LazyArray: an array in a file or a repository that is read piece by piece when it is needed.

A state may hold one wherever it may hold an array. `commit` and the file formats read it a piece at
a time, so their memory does not grow with the array.
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
    """An array that is read by position.

    Attributes:
        kind: "tensor" or "ndarray", which is what a checkout returns for it.
        dtype: The name of its dtype in `ckptstore.documents.dtypes`.
        shape: The lengths of its dimensions.
        identity: Equal for two names of the same array, which are then stored as tied; None where
            that means nothing.
        order: Its dimensions in the order of the bytes where it comes from; None for C order, and
            where the bytes are not one run.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    identity: object = None
    order: tuple[int, ...] | None = None

    def stored(self) -> LazyArray:
        """The array with its dimensions in the order of its bytes, as which a commit stores it."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @abstractmethod
    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes in C order, little-endian.

        It is called by several threads at once.

        Args:
            buffer: Writable memory, filled completely.
            start: The position in the array's bytes to begin at.

        Raises:
            CkptStoreError: The bytes cannot be read. The content of the buffer is then undefined.
        """

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the start and size, in bytes, of the pieces in which to read all of the array."""
        for start in range(0, self.nbytes, PIECE_BYTES):
            yield start, min(PIECE_BYTES, self.nbytes - start)

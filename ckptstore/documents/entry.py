"""StoredArray: an array as a page lists it, with what is needed to read it.

A diff names arrays of both sides by it. See docs/reference/format.md, section 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.documents.chunks import is_contiguous
from ckptstore.documents.zarr_page import EncodedEntry

if TYPE_CHECKING:
    from ckptstore.documents.page import ArrayEntry, Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array of a checkpoint, and the bundle of its page.

    Attributes:
        entry: The array as its page lists it.
        bundle: The object that holds the small arrays of that page, if there are any.
    """

    entry: ArrayEntry
    bundle: Bundle | None = None

    @property
    def is_encoded(self) -> bool:
        """True for an array that was committed through Zarr."""
        return isinstance(self.entry, EncodedEntry)

    @property
    def is_contiguous(self) -> bool:
        """True when each chunk is one run of the array's bytes in C order."""
        if self.is_encoded:
            return False
        entry = self.entry
        return entry.offset is not None or is_contiguous(entry.shape, entry.chunk_shape)

    @property
    def path(self) -> str:
        """Its path in the checkpoint."""
        return self.entry.path

    @property
    def dtype(self) -> str:
        """Its dtype."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.entry.nbytes

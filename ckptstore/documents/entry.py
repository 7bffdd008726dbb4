"""StoredArray: an array as a page lists it, with what is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.documents.zarr_page import EncodedEntry

if TYPE_CHECKING:
    from ckptstore.documents.page import ArrayEntry, Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array of one of the two checkpoints, and the bundle of its page."""

    entry: ArrayEntry
    bundle: Bundle | None = None

    @property
    def is_encoded(self) -> bool:
        """True for an array that came in through Zarr."""
        return isinstance(self.entry, EncodedEntry)

    @property
    def path(self) -> str:
        """Its path in that checkpoint."""
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

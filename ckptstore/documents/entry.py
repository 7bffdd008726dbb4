"""StoredArray: an array as a checkpoint lists it, with what is needed to read it.

A diff names arrays of both sides by it. See docs/reference/format.md, section 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ckptstore.documents.chunks import is_contiguous
from ckptstore.documents.page import ArrayEntry
from ckptstore.documents.zarr_page import EncodedEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptstore.digest import Digest
    from ckptstore.documents.page import Bundle


class Entry(Protocol):
    """An array of a checkpoint: an `ArrayEntry` of a page, or an `EncodedEntry` of Zarr."""

    @property
    def path(self) -> str:
        """Its path in the state."""

    @property
    def dtype(self) -> str:
        """The name of its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its dimensions."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored of it."""

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests of its bytes."""

    @property
    def cut(self) -> tuple[int, ...]:
        """How its bytes are divided among its digests."""

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for arrays of the same dtype and shape only if these hold the same elements."""

    def sized_digests(self) -> Iterable[tuple[Digest, int]]:
        """Each digest with the bytes that it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array of a checkpoint, and the bundle of its page.

    Attributes:
        entry: The array as its page, or its Zarr document, describes it.
        bundle: The object that holds the small arrays of that page, if there are any.
    """

    entry: Entry
    bundle: Bundle | None = None

    @property
    def is_encoded(self) -> bool:
        """True for an array that was committed through Zarr."""
        return isinstance(self.entry, EncodedEntry)

    @property
    def is_contiguous(self) -> bool:
        """True when each chunk is one run of the array's bytes in C order."""
        entry = self.entry
        if not isinstance(entry, ArrayEntry) or entry.order is not None:
            return False
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

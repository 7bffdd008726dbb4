"""Marker: `ckptstore.json`, which makes a folder a repository and fixes what never changes in it.

See docs/reference/format.md, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ckptstore.documents import sealed
from ckptstore.documents.canonical import Fields
from ckptstore.errors import CorruptError, InvalidInputError, shown

MARKER_KEY = "ckptstore.json"
MARKER_BYTES_MAX = 1 << 16
FORMAT_VERSION = 1
CHUNK_BYTES_DEFAULT = 8 << 20
CHUNK_BYTES_MIN = 64 << 10
CHUNK_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The fixed facts of one repository.

    store: a random id. chunk_bytes: the bytes of the largest chunks.
    """

    store: str
    chunk_bytes: int = CHUNK_BYTES_DEFAULT

    def __post_init__(self) -> None:
        size = self.chunk_bytes
        if type(size) is not int or not CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX:
            raise InvalidInputError(
                f"The chunk size is {shown(size)} bytes; {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} "
                "are allowed."
            )

    def encode(self) -> bytes:
        """Encode to the bytes of ckptstore.json."""
        document = {
            "format": FORMAT_VERSION,
            "store": self.store,
            "hash": "blake3",
            "chunk_size": self.chunk_bytes,
        }
        return sealed.seal("repository", document)

    @classmethod
    def decode(cls, data: bytes, *, name: str = "ckptstore.json") -> Self:
        """Decode ckptstore.json; InvalidInputError for another version of the format."""
        fields = Fields(sealed.unseal("repository", data, name=name), name=name)
        version = fields.integer("format", low=1)
        if version != FORMAT_VERSION or fields.text("hash") != "blake3":
            raise InvalidInputError(
                f"This repository has format version {version}; this ckptstore reads version "
                f"{FORMAT_VERSION}. Upgrade ckptstore."
            )
        chunk_bytes = fields.integer("chunk_size", low=CHUNK_BYTES_MIN, high=CHUNK_BYTES_MAX)
        store = fields.text("store", length_max=64)
        if not store:
            raise CorruptError(f"{name}: the repository has no id.")
        return cls(store=store, chunk_bytes=chunk_bytes)

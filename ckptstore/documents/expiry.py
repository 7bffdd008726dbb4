"""Expiry: when, why and by whose gc the arrays of an expired checkpoint were deleted.

It is kept beside the manifest (docs/reference/format.md, section 14.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents import sealed
from ckptstore.documents.author import Author
from ckptstore.documents.canonical import Fields
from ckptstore.documents.manifest import CREATED_MAX
from ckptstore.times import to_the_minute

if TYPE_CHECKING:
    from ckptstore.digest import Digest

EXPIRY_BYTES_MAX = 1 << 20
WHY_LENGTH_MAX = 1 << 16
EXPIRY_ANCESTORS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """When and why a checkpoint expired.

    time: UTC in microseconds since 1970. why: the policy that no longer kept it, as a sentence.
    ancestors: its nearest ancestors that did not expire before or with it, so that a walk over live
    checkpoints need not read those between; None when they were not looked up (docs/adr/0028).
    """

    time: int
    why: str
    ancestors: tuple[Digest, ...] | None = None
    by: Author | None = None

    def __str__(self) -> str:
        by = f" by {self.by.who}" if self.by and self.by.who else ""
        return f"{to_the_minute(self.time)}{by}: {self.why}"

    def encode(self) -> bytes:
        """Encode to the bytes of expired/<id>.json."""
        document: dict[str, Any] = {"format": 1, "time": self.time, "why": self.why}
        if self.ancestors is not None:
            document["ancestors"] = self.ancestors
        if self.by is not None:
            document["by"] = self.by
        return sealed.seal("expiry", document, bytes_max=EXPIRY_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode an expiry, with every field checked."""
        fields = Fields(sealed.unseal("expiry", data, name=name), name=name)
        fields.version()
        return cls(
            time=fields.integer("time", high=CREATED_MAX),
            why=fields.text("why", length_max=WHY_LENGTH_MAX),
            ancestors=fields.optional(
                "ancestors", lambda key: fields.digests(key, high=EXPIRY_ANCESTORS_MAX)
            ),
            by=fields.optional(
                "by", lambda key: Author.from_json(fields.get(key), name=f"{name}, {key}")
            ),
        )

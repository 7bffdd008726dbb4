"""Digest: the name of some bytes, their BLAKE3 hash in 64 lowercase hexadecimal digits.

A Digest is a string, so that it is its own JSON form, dict key and sort order. `Digest.parse` is the only way
in from text, so whoever holds a Digest holds a well-formed one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blake3 import blake3

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEX_DIGITS = 64
_PATTERN = re.compile(r"[0-9a-f]{64}")


class Digest(str):
    """The BLAKE3 hash of some bytes, as 64 lowercase hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def of(cls, data: Buffer) -> Digest:
        """Hash the bytes of a buffer, on the calling thread, without the GIL when it is large."""
        return cls(blake3(data).hexdigest())

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Take text for a digest, or raise InvalidInputError."""
        if not isinstance(text, str) or not _PATTERN.fullmatch(text):
            shown = repr(text)[:80]
            raise InvalidInputError(
                f"{shown} is not a digest: 64 lowercase hexadecimal digits are expected."
            )
        return cls(text)

    @property
    def short(self) -> str:
        """The first 8 digits, for people."""
        return self[:8]

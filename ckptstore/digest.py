"""Digest: the name of some bytes, which is their BLAKE3 hash in 64 lowercase hexadecimal digits.

A Digest is a string, so that it is its own JSON form, dict key and sort order. `Digest.parse` is
the only way in from text, so every Digest is well-formed (docs/reference/format.md, section 5).
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
    """The BLAKE3 hash of some bytes, as 64 lowercase hexadecimal digits.

    Example:
        >>> from ckptstore import Digest
        >>> Digest.of(b"abc").short
        '6437b3ac'
    """

    __slots__ = ()

    @classmethod
    def of(cls, data: Buffer) -> Digest:
        """Hash the bytes of a buffer on the calling thread, without the GIL when it is large.

        Args:
            data: Contiguous bytes.
        """
        return cls(blake3(data).hexdigest())

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Return text as a digest.

        Args:
            text: 64 hexadecimal digits, in lower case.


        Raises:
            InvalidInputError: The text is not 64 lowercase hexadecimal digits.
        """
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

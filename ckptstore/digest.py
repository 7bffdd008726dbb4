"""Digest: the name of some bytes, which is their BLAKE3 hash in 64 lowercase hexadecimal digits.

A Digest is a string, so that it is its own JSON form, dict key and sort order. `Digest.parse` is
the only way in from text, so every Digest is well-formed (docs/reference/format.md, section 5).
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from blake3 import blake3

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

HEX_DIGITS = 64
RAW_BYTES = 32
NUMBER_BYTES = 8
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


class DigestMap:
    """Numbers by digest, in about 55 bytes each; a dict takes five times as much.

    Raw digests, each followed by its number, lie one behind the other in 65,536 buckets, which the
    first four digits select, in 256 rows, so that few digests do not need all of them. With 10
    million digests a bucket has 6 KB, which is searched in less than a microsecond.
    """

    __slots__ = ("_count", "_rows")

    def __init__(self) -> None:
        self._rows: list[list[bytearray | None] | None] = [None] * 256
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: str) -> bool:
        return self.get(digest) is not None

    def __setitem__(self, digest: str, number: int) -> None:
        """Set the number of a digest, from 0 to 2**64 - 1."""
        raw, bucket, place = self._find(digest)
        encoded = number.to_bytes(NUMBER_BYTES, "little")
        if bucket is None:
            row = self._rows[raw[0]]
            if row is None:
                row = self._rows[raw[0]] = [None] * 256
            row[raw[1]] = bytearray(raw + encoded)
        elif place < 0:
            bucket += raw + encoded
        else:
            bucket[place + RAW_BYTES : place + RAW_BYTES + NUMBER_BYTES] = encoded
        self._count += place < 0

    def get(self, digest: str) -> int | None:
        """Return the number of a digest; None for one that is not in the map."""
        _, bucket, place = self._find(digest)
        if bucket is None or place < 0:
            return None
        start = place + RAW_BYTES
        return int.from_bytes(bucket[start : start + NUMBER_BYTES], "little")

    def items(self) -> Iterator[tuple[Digest, int]]:
        """Yield every digest and its number, in the order of the digests' first four digits.

        Numbers may be changed meanwhile.
        """
        step = RAW_BYTES + NUMBER_BYTES
        for bucket in filter(None, chain.from_iterable(filter(None, self._rows))):
            for place in range(0, len(bucket), step):
                entry = bytes(bucket[place : place + step])
                number = int.from_bytes(entry[RAW_BYTES:], "little")
                yield Digest(entry[:RAW_BYTES].hex()), number

    def values(self) -> Iterator[int]:
        """Yield every number, in the same order."""
        return (number for _, number in self.items())

    def _find(self, digest: str) -> tuple[bytes, bytearray | None, int]:
        """Return a digest's bytes, its bucket, and its position there, or -1."""
        raw = bytes.fromhex(digest)
        row = self._rows[raw[0]]
        bucket = None if row is None else row[raw[1]]
        place = -1 if bucket is None else bucket.find(raw)
        while bucket is not None and place % (RAW_BYTES + NUMBER_BYTES) and place >= 0:
            place = bucket.find(raw, place + 1)  # its bytes lie across two entries
        return raw, bucket, place

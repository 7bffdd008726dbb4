"""Copies: copy memory that others may write to in pieces, so that each piece is hashed only once.

The hashed bytes are then the written bytes, even if the memory changes meanwhile. A piece is
copied, hashed and written while it is in the core's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Seen
    from ckptstore.threads import Buffers

PIECE_BYTES = 1 << 18


def copies(data: Buffer, buffers: Buffers, *, seen: Seen) -> Iterator[memoryview]:
    """Yield copies of the bytes, piece by piece, after passing each to `seen`.

    A piece is valid until the next one. The interpreter's lock is free while it is copied.
    """
    source = memoryview(data).cast("B")
    buffer = buffers.of(min(len(source), PIECE_BYTES))
    for start in range(0, len(source), PIECE_BYTES):
        part = source[start : start + PIECE_BYTES]
        piece = buffer[: len(part)]
        copy_bytes(part, piece)
        seen(piece)
        yield piece


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copy bytes to a buffer of their size. The interpreter's lock is free meanwhile."""
    import numpy as np  # here, as most commands write nothing large

    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))

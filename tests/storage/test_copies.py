"""Copies of memory that others may write to."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3

from ckptstore.storage.copies import PIECE_BYTES, copies
from ckptstore.threads import Buffers

SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5)


@pytest.mark.parametrize("size", SIZES)
def test_pieces_are_copies_of_all_bytes_in_order(size: int) -> None:
    source = random.Random(size).randbytes(size)
    hasher = blake3()
    pieces = [bytes(piece) for piece in copies(source, Buffers(), seen=hasher.update)]
    assert b"".join(pieces) == source
    assert hasher.digest() == blake3(source).digest()

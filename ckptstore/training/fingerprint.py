"""Fingerprints: one digest of any nested state, to compare it with that of another process."""

from __future__ import annotations

from blake3 import blake3

from ckptstore.commit.flatten import flatten
from ckptstore.digest import Digest


def fingerprint(state: object) -> Digest:
    """The BLAKE3 of a state: the bytes of its arrays, their dtypes and shapes, and all else in it.

    Raises:
        UnsupportedValueError: It holds a value that no checkpoint can hold.
    """
    flat = flatten(state)
    hasher = blake3(repr(flat.root).encode())
    for path, source in flat.arrays.items():
        hasher.update(f"{path}\0{source.dtype}\0{source.shape}\0".encode())
        for piece in source.pieces():
            hasher.update(piece)
    return Digest(hasher.hexdigest())

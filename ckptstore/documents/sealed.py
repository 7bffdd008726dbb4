"""Sealed documents: those whose file name is not their digest carry their digest inside.

The marker, operations and expiries have other names, so a flipped bit in them would go unseen
without this (docs/reference/format.md, section 6; ADR 0002).
"""

from __future__ import annotations

from typing import Any

from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.canonical import DOCUMENT_BYTES_MAX
from ckptstore.errors import CorruptError


def seal(kind: str, document: dict[str, Any], *, bytes_max: int = DOCUMENT_BYTES_MAX) -> bytes:
    """Encode a document together with the BLAKE3 of its canonical bytes."""
    name = f"The {kind}"
    digest = Digest.of(canonical.encode(document, name=name, bytes_max=bytes_max))
    return canonical.encode({"blake3": digest, kind: document}, name=name, bytes_max=bytes_max)


def unseal(kind: str, data: bytes, *, name: str) -> dict[str, Any]:
    """Decode a sealed document; CorruptError when one bit of the file differs."""
    sealed = canonical.decode(data, name=name)
    document = sealed.get(kind)
    if sealed.keys() != {"blake3", kind} or not isinstance(document, dict):
        raise CorruptError(f"{name} is not a sealed {kind}.")
    if (
        sealed["blake3"] != Digest.of(canonical.encode(document, name=name))
        or canonical.encode(sealed, name=name) != data
    ):
        raise CorruptError(f"{name} does not match the digest it carries; the file was damaged.")
    return document

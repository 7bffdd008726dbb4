"""Writes repositories by hand with correct digests, so that only their meaning can be refused.

It shares no code with ckptstore: documents are any JSON or any bytes that a case passes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from pathlib import Path

W_BYTES = bytes(8)  # the honest array "w": two float32 zeros
MISSING = "0" * 64


def digest_of(data: bytes) -> str:
    """The digest of some bytes."""
    return str(blake3(data).hexdigest())


def dumps(document: object) -> bytes:
    """Canonical JSON, and what Python makes of values that JSON lacks."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


class Forge:
    """Writes the files of one repository. `honest` writes valid ones; parts replace them."""

    def __init__(self, root: Path, outside: Path) -> None:
        self.root, self.outside = root, outside
        for name in ("ops", "checkpoints", "history", "objects", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def honest(self, **parts: Any) -> str:
        """A marker, one checkpoint and one operation; `parts` are passed on to `checkpoint`."""
        self.marker()
        id = self.checkpoint(**parts)
        self.operation(heads={"main": id})
        return id

    def checkpoint(
        self,
        *,
        arrays: Any = None,
        page: bytes | None = None,
        page_fields: dict[str, Any] | None = None,
        ref: dict[str, Any] | None = None,
        structure: Any = None,
        structure_bytes: bytes | None = None,
        **manifest: Any,
    ) -> str:
        """One checkpoint of the array "w", any part of it replaced; its id."""
        listed = [self.entry()] if arrays is None else arrays
        page_bytes = dumps({"arrays": listed, **(page_fields or {})}) if page is None else page
        if structure_bytes is None:
            root = {"dict": [["w", {"tensor": "w"}]]} if structure is None else structure
            structure_bytes = dumps({"structure": root})
        claims = {"first": "w", "digest": self.object(page_bytes), "arrays": 1, "bytes": 8}
        fields = {
            "pages": [{**claims, **_claims(listed), **(ref or {})}],
            "structure": self.object(structure_bytes),
        }
        return self.manifest(**{**fields, **manifest})

    def entry(self, **fields: Any) -> dict[str, Any]:
        """The page entry of "w" as an array of one chunk."""
        return {
            "path": "w",
            "dtype": "float32",
            "shape": [2],
            "chunk_shape": [2],
            "digests": [self.object(W_BYTES)],
            **fields,
        }

    def small(self, data: bytes = W_BYTES, **fields: Any) -> dict[str, Any]:
        """The page entry of "w" as an array in a bundle."""
        return {
            "path": "w",
            "dtype": "float32",
            "shape": [len(data) // 4],
            "digest": digest_of(data),
            "offset": 0,
            **fields,
        }

    def bundle(self, data: bytes = W_BYTES, **fields: Any) -> dict[str, Any]:
        """The page's field for a bundle of these bytes."""
        return {"bundle": {"digest": self.object(data), "size": len(data), **fields}}

    def manifest(self, **fields: Any) -> str:
        """Write a manifest; its id."""
        return self.manifest_bytes(dumps(self.manifest_document(**fields)))

    def manifest_document(self, **fields: Any) -> dict[str, Any]:
        """The fields of a manifest, those passed in place of honest ones."""
        return {
            "format": 1,
            "pages": [],
            "structure": MISSING,
            "parents": [],
            "step": 1,
            "metrics": {"loss": 0.5},
            "message": "",
            "created": 1_700_000_000_000_000,
            "new_bytes": 8,
            "meta": {},
            **fields,
        }

    def manifest_bytes(self, data: bytes) -> str:
        """Write any bytes as a manifest; their digest."""
        id = digest_of(data)
        self.manifest_path(id).write_bytes(data)
        return id

    def manifest_path(self, id: str) -> Path:
        """The path of a manifest."""
        return self.root / "checkpoints" / f"{id}.json"

    def object(self, data: bytes) -> str:
        """Write an object; its digest."""
        digest = digest_of(data)
        path = self.object_path(digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return digest

    def object_path(self, digest: str) -> Path:
        """The path of an object."""
        return self.root / "objects" / digest[:2] / digest[2:]

    def operation(self, *, at: int = 1, **fields: Any) -> Path:
        """Write an operation as `ops/<at>`, sealed."""
        document = {
            "format": 1,
            "seq": at,
            "nonce": "0123456789abcdef",
            "time": 1_700_000_000_000_000,
            "heads": {},
            "tags": {},
            "settings": {},
            "condemned": None,
            "done": "forged",
            "undoes": None,
            **fields,
        }
        path = self.operation_path(at)
        path.write_bytes(sealed("operation", document))
        return path

    def operation_path(self, at: int = 1) -> Path:
        """The path of an operation."""
        return self.root / "ops" / f"{at:012}.json"

    def marker(self, **fields: Any) -> None:
        """Write the marker, sealed."""
        document = {"format": 1, "store": "f" * 32, "hash": "blake3", "chunk_size": 65536, **fields}
        self.marker_path.write_bytes(sealed("repository", document))

    @property
    def marker_path(self) -> Path:
        """The path of the marker."""
        return self.root / "ckptstore.json"


def sealed(kind: str, document: object) -> bytes:
    """A document with its digest inside."""
    return dumps({"blake3": digest_of(dumps(document)), kind: document})


def _claims(arrays: Any) -> dict[str, Any]:
    """What an honest manifest would claim of these arrays, as far as they make sense."""
    try:
        sizes = {"bool": 1, "uint8": 1, "float32": 4}
        total = 0
        for entry in arrays:
            count = sizes[entry["dtype"]]
            for length in entry["shape"]:
                count *= length
            total += count
        return {"first": arrays[0]["path"], "arrays": len(arrays), "bytes": total}
    except (KeyError, IndexError, TypeError):
        return {}

"""Contents of a batch: a digest of it and of each array in it. See docs/adr/0055."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blake3 import blake3

from ckptstore.commit.flatten import flatten
from ckptstore.training.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST, PARTS = "digest", "parts"
PARTS_MAX = 64  # arrays of a batch that are named where they differ
END = "end"  # the digest where no batch is left


def contents(batch: object) -> dict[str, Any]:
    """The BLAKE3 of a batch, and the dtype, shape and BLAKE3 of each array in it.

    Raises:
        UnsupportedValueError: It holds a value that no checkpoint can hold.
    """
    arrays = flatten(batch).arrays
    parts: dict[str, str] = {}
    if len(arrays) <= PARTS_MAX:
        for path, source in arrays.items():
            hasher = blake3()
            for piece in source.pieces():
                hasher.update(piece)
            kind = f"{source.dtype} {[*source.shape]}"
            parts[path] = f"{kind} {hasher.hexdigest(16)}"
    return {DIGEST: str(fingerprint(batch)), PARTS: parts}


NO_BATCH: dict[str, Any] = {DIGEST: END, PARTS: {}}


def difference(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the contents of two batches, in words; empty if nothing does."""
    if saved[DIGEST] == now[DIGEST]:
        return ""
    if END in (saved[DIGEST], now[DIGEST]):
        return "there is none" if now[DIGEST] == END else "there was none"
    said = [*_said(saved[PARTS], now[PARTS])]
    return ", ".join(said) or "a value beside its arrays"


def _said(saved: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for path in dict.fromkeys((*saved, *now)):
        name = path or "its array"
        if path not in now:
            yield f"{name} is missing"
        elif path not in saved:
            yield f"{name} is new"
        elif saved[path] != now[path]:
            kinds = [part.rpartition(" ")[0] for part in (saved[path], now[path])]
            is_same_kind = kinds[0] == kinds[1]
            yield (
                f"values of {name}" if is_same_kind else f"{name} was {kinds[0]} and is {kinds[1]}"
            )

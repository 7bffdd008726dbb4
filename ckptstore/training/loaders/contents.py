"""Contents of batches: a digest of a whole one, and a cheap glimpse of one. See docs/adr/0055."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from blake3 import blake3

from ckptstore.commit.flatten import flatten
from ckptstore.training.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST, PARTS = "digest", "parts"
PARTS_MAX = 64  # arrays of a batch that are named where they differ
LEAVES_MAX = 8  # that a glimpse looks at
NUMBERS_MAX = 32  # of each array, evenly spread
TEXT_LENGTH_MAX = 200
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


def glimpse(batch: object) -> str:
    """A short digest of some of a batch's numbers, for a few microseconds at each of them."""
    return blake3("\0".join(_leaves(batch)).encode()).hexdigest(8)


def _leaves(batch: object) -> Iterator[str]:
    left, seen = deque([batch]), 0
    while left and seen < LEAVES_MAX:
        item = left.popleft()
        if isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, (list, tuple)):
            left.extend(item[:LEAVES_MAX])
        else:
            seen += 1
            yield _text(item)


def _text(item: Any) -> str:
    if isinstance(item, (torch.Tensor, np.ndarray)):
        is_near = isinstance(item, np.ndarray) or (
            item.device.type == "cpu" and item.layout == torch.strided
        )
        size = int(np.prod(item.shape))
        kind = f"{item.dtype} {[*item.shape]}"
        if not size or not is_near:
            return kind
        if item.ndim:
            chosen = np.linspace(0, size - 1, min(size, NUMBERS_MAX)).astype(np.int64)
            item = item[np.unravel_index(chosen, tuple(item.shape))]
        return f"{kind} {item.tolist()}"
    if isinstance(item, (str, bytes, int, float, complex, type(None))):
        return repr(item)[:TEXT_LENGTH_MAX]
    return type(item).__name__

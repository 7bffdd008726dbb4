"""Glimpse: a short digest of a few numbers of a batch, cheap enough for each one.

It shows that another batch came than before, not that the same one did. See docs/adr/0055.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAVES_MAX = 8  # of a batch
NUMBERS_MAX = 32  # of each array, evenly spread
TEXT_LENGTH_MAX = 200


def glimpse(batch: object) -> str:
    """The digest of some of the numbers in a batch."""
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
    kind = _class_of_array(item)
    if kind is not None:
        return f"{item.dtype} {[*item.shape]} {_numbers(item) if kind == 'near' else ''}"
    if isinstance(item, (str, bytes, int, float, complex, type(None))):
        return repr(item)[:TEXT_LENGTH_MAX]
    return type(item).__name__


def _class_of_array(item: Any) -> str | None:
    """ "near" for an array whose numbers can be read at once, "far" for others, None for no array.

    Neither torch nor numpy is imported for this.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.ndarray):
        return "near"
    if torch is None or not isinstance(item, torch.Tensor):
        return None
    return "near" if item.device.type == "cpu" and item.layout == torch.strided else "far"


def _numbers(item: Any) -> Any:
    """Some numbers of an array."""
    import numpy as np

    size = math.prod(item.shape)
    if item.ndim and size:
        chosen = np.linspace(0, size - 1, min(size, NUMBERS_MAX)).astype(np.int64)
        item = item[np.unravel_index(chosen, tuple(item.shape))]
    return item.tolist()

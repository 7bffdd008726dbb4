"""Whether arrays that are about to be read fit: in memory, and in a budget for what they claim.

A small file can claim a huge array: compressed zeros, or chunks that are absent. What takes far
more than is stored of it is refused unless the caller states how much it may take.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

UNPACKED_BYTES_FREE = 64 << 20  # without regard to what is stored
UNPACKED_RATIO_MAX = 100  # of unpacked to stored bytes beyond that; weights have 1.1 to 4


def check_memory(sizes: Iterable[int]) -> None:
    """StorageError for more bytes than the machine has memory, before any are allocated."""
    needed = math.fsum(sizes)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > physical:
        raise StorageError(
            f"These arrays need {needed / 1e9:.1f} GB and this machine has {physical / 1e9:.1f} GB "
            "of memory. Choose some of them with include."
        )


def check_unpacked(name: str, unpacked: int, *, stored: int, bytes_max: int | None) -> None:
    """InvalidInputError for something that would unpack to far more than it has.

    Args:
        name: Names it in the error.
        unpacked: Bytes that it would take.
        stored: Bytes that it has.
        bytes_max: What the caller has allowed, if anything.
    """
    budget = UNPACKED_BYTES_FREE + UNPACKED_RATIO_MAX * stored if bytes_max is None else bytes_max
    if unpacked > budget:
        raise InvalidInputError(
            f"{name} would take {unpacked:,} bytes, and has {stored:,}. At most {budget:,} are "
            f"unpacked. If you trust it, allow that many (bytes_max={unpacked})."
        )

"""Whether the memory of this machine can hold arrays that are about to be read."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from ckptstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_memory(sizes: Iterable[int]) -> None:
    """StorageError for more bytes than the machine has memory, before any are allocated."""
    needed = math.fsum(sizes)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > physical:
        raise StorageError(
            f"These arrays need {needed / 1e9:.1f} GB and this machine has {physical / 1e9:.1f} GB "
            "of memory. Choose some of them with include."
        )

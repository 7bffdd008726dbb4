"""Open files: how much may be done at once where a container allows a process few of them."""

from __future__ import annotations

import os
import resource

SPARE = 16  # for what else the process opens meanwhile
PLENTY = 1 << 16  # above this limit, open files are not counted
_OPEN = "/dev/fd"


def affordable(wanted: int, *, files_each: int) -> int:
    """Return as many as wanted, or fewer if each opens files and the process may open few more.

    Args:
        wanted: How many threads or files would be best.
        files_each: The most files that one of them has open, with its share of all others.

    Returns:
        A number from 1 to `wanted`.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit > PLENTY:
        return wanted
    try:
        left = limit - len(os.listdir(_OPEN))
    except OSError:  # not even this folder can be opened
        left = 0
    return max(1, min(wanted, (left - SPARE) // files_each))

"""Newest: finds the newest operation by looks alone, where a listing is late or there is none.

Numbers are given without gaps, and only the oldest operations are pruned, so from one that is there
all newer ones are. A gap, which only damage makes, is stepped over if an operation at a power of
two behind it is there. Pure, but for the looks (docs/adr/0064).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DISTANCES = tuple(1 << power for power in range(11))  # 1 to 1,024
THREADS = 16
SEQ_MAX = 1_000_000  # the last number that is looked for without any that is known


def newest_after(seq: int, exists: Callable[[int], bool]) -> int:
    """Return the number of the newest operation, given one that is there; 0 before the first."""
    while found := _existing((seq + distance for distance in DISTANCES), exists):
        seq = max(found)
    return seq


def newest_of_all(exists: Callable[[int], bool], *, kept: int) -> int:
    """Return the number of the newest operation; 0 if there is none.

    kept: how many are never pruned. Among as many in a row, one number is a multiple of this.
    """
    if first := newest_after(0, exists):
        return first
    for begin in range(kept, SEQ_MAX, kept * THREADS):
        if found := _existing(range(begin, begin + kept * THREADS, kept), exists):
            return newest_after(max(found), exists)
    return 0


def _existing(seqs: Iterable[int], exists: Callable[[int], bool]) -> list[int]:
    numbers = list(seqs)
    looks = gather([partial(exists, seq) for seq in numbers], threads=THREADS)
    return [seq for seq, is_there in zip(numbers, looks, strict=True) if is_there]

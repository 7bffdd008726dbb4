"""Aside: moves damaged objects to `damaged/`, so that they can be stored again.

A commit may have replaced a damaged object of another size and be about to rely on it. So they are
condemned like what a gc deletes (docs/reference/format.md, section 14.1), after a copy of each was
made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.documents.operation import Condemned
from ckptstore.gc.deletion import end
from ckptstore.gc.execute import NothingLeftError
from ckptstore.gc.finish import alone, begin
from ckptstore.gc.remaining import BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.gc.ownership import Ownership
    from ckptstore.gc.stores import Stores


def set_aside(stores: Stores, digests: Sequence[Digest]) -> tuple[Digest, ...]:
    """Move those of some objects aside that are damaged, and return them.

    Objects that are intact again stay. Links, folders and files that are too large stay too.
    """

    def run(ownership: Ownership) -> tuple[Digest, ...]:
        moved: list[Digest] = []
        begin(stores)
        for start in range(0, len(digests), BATCH):
            moved += _set_aside(stores, digests[start : start + BATCH], ownership)
        if moved:
            end(stores, ownership, f"moved {len(moved)} damaged objects aside")
        return tuple(moved)

    return alone(stores, run)


def _set_aside(
    stores: Stores, digests: Sequence[Digest], ownership: Ownership
) -> tuple[Digest, ...]:
    objects = stores.objects
    copied = [digest for digest in digests if objects.copy_aside(digest)]
    damaged: tuple[Digest, ...] = ()

    def condemn(newest: Operation) -> Operation:
        """Condemn what no commit has replaced that was published before."""
        nonlocal damaged
        damaged = tuple(digest for digest in copied if objects.is_damaged(digest))
        if not damaged:
            raise NothingLeftError
        condemned = Condemned(digests=damaged, owner=ownership.owner, since=newest.seq + 1)
        return replace(newest, condemned=condemned)

    try:
        ownership.append(condemn, "condemned damaged objects, of which there are copies")
    except NothingLeftError:
        damaged = ()
    for bulk in ownership.bulks(damaged):
        objects.delete(bulk)
    objects.drop_aside(set(copied).difference(damaged))
    return damaged

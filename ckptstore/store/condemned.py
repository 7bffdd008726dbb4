"""Condemned: the rule by which everybody else lives beside a gc.

A gc names what it is about to delete in an operation. Nobody makes an operation that relies on what an operation condemned
since they first looked: they wait for the storage's lock, finish the gc if it died, put what they need again, and append.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.store.oplog import Oplog

GRACE_SECONDS = 3600.0  # how long what nothing reaches is left alone, as somebody may be making it


class CondemnedError(Exception):
    """A gc may have deleted what an operation was to rely on. Wait for it, put that again, and decide anew."""


def refuse_condemned(
    oplog: Oplog, newest: Operation, *, since: int, digests: AbstractSet[Digest], id: Digest
) -> None:
    """Raise CondemnedError when a gc condemned one of these objects, or this checkpoint, since an operation was read."""
    try:
        for operation in oplog.between(since, newest):
            condemned = operation.condemned
            if condemned and (
                id in condemned.checkpoints or not digests.isdisjoint(condemned.digests)
            ):
                raise CondemnedError
    except NotFoundError as error:  # so long ago that operations since were pruned: nobody knows
        raise CondemnedError from error

"""Condemned: the rule by which all other processes live beside a gc.

A gc names what it will delete in an operation. No process appends an operation that relies
on what any operation condemned since that process first looked. Instead it waits for the storage's
lock, finishes the gc if that died, puts again what it needs, and appends (docs/reference/format.md,
section 14.1; ADR 0011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.store.oplog import Oplog

COMMIT_SECONDS = 3600.0  # the longest grace time of objects that a commit may be making


class CondemnedError(Exception):
    """A gc may have deleted what an operation relies on: wait for it, put that again, and retry."""


def refuse_condemned(
    oplog: Oplog, newest: Operation, *, since: int, digests: AbstractSet[Digest], id: Digest
) -> None:
    """Raise CondemnedError when a gc condemned one of these objects, or this checkpoint.

    since: the number of the operation that was the newest when the caller first looked.
    """
    try:
        for operation in oplog.between(since, newest):
            condemned = operation.condemned
            if condemned and (
                id in condemned.checkpoints or not digests.isdisjoint(condemned.digests)
            ):
                raise CondemnedError
    except NotFoundError as error:  # operations since then were pruned, so this is unknown
        raise CondemnedError from error

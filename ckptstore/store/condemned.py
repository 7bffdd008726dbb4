"""Condemned: the rule by which all other processes live beside a gc.

A gc names what it will delete in an operation. No process appends an operation that relies
on what any operation condemned since that process first looked. Instead it waits until that is
deleted, finishes the gc if it died, puts again what it needs, and appends
(docs/reference/format.md, section 14.1; ADR 0011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.storage import Storage
    from ckptstore.store.oplog import Oplog

COMMIT_SECONDS = 3600.0  # the longest grace time of objects that a commit may be making
FAR_COMMIT_SECONDS = 86_400.0  # the same where a commit may come over a slow line
# A gc sends nothing after the end of its lease. Servers refuse a request that was signed more than
# 15 minutes ago, so after these what it sent has arrived, or never will (ADR 0060).
MARGIN_SECONDS = 900.0


class CondemnedError(Exception):
    """A gc may have deleted what an operation relies on: wait for it, put that again, and retry.

    condemned: what was met; None if that is unknown.
    """

    def __init__(self, condemned: Condemned | None = None) -> None:
        super().__init__()
        self.condemned = condemned


def commit_seconds(storage: Storage) -> float:
    """Return the longest grace time of objects that a commit may be making."""
    return FAR_COMMIT_SECONDS if storage.lease_seconds else COMMIT_SECONDS


def seconds_until_dead(storage: Storage) -> float:
    """Return the age of a condemnation after which its owner deletes nothing more."""
    return storage.lease_seconds + MARGIN_SECONDS


def refuse_condemned(
    oplog: Oplog,
    newest: Operation,
    *,
    since: int,
    digests: AbstractSet[Digest],
    ids: AbstractSet[Digest],
) -> None:
    """Raise CondemnedError when a gc condemned one of these objects or checkpoints.

    since: the number of the operation that was the newest when the caller first looked.
    """
    try:
        for operation in oplog.between(since, newest):
            condemned = operation.condemned
            if condemned and (
                not ids.isdisjoint(condemned.checkpoints)
                or not digests.isdisjoint(condemned.digests)
            ):
                raise CondemnedError(condemned)
    except NotFoundError as error:  # operations since then were pruned, so this is unknown
        raise CondemnedError from error

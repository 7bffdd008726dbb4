"""Execute: carries out a plan, and finishes a gc that died."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.documents.expiry import Expiry
from ckptstore.errors import NotFoundError
from ckptstore.gc.remaining import find_remaining

if TYPE_CHECKING:
    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.marks import PlanReach
    from ckptstore.gc.plan import GcPlan
    from ckptstore.gc.remaining import Remaining
    from ckptstore.gc.stores import Stores


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """The result of a gc.

    Attributes:
        expired: The checkpoints whose arrays were deleted.
        objects: How many objects were deleted.
        bytes: The bytes of these.
    """

    expired: tuple[Digest, ...]
    objects: int
    bytes: int


def execute_plan(stores: Stores, plan: GcPlan, reach: PlanReach, *, grace: float) -> GcReport:
    """Execute a plan: its checkpoints expire, unless something refers to them now."""
    owner = secrets.token_hex(8)
    expired: list[Digest] = []
    freed: list[int] = []
    with stores.storage.lock():
        finish_gc(stores)
        stores.storage.sweep()
        left = find_remaining(stores, plan, reach, grace=grace)
        while condemned := condemn(stores, left, owner=owner):
            delete(stores, condemned)
            expired += condemned.checkpoints
            freed += (left.sizes[digest] for digest in condemned.digests)
        if expired or freed:
            done = f"gc: {len(expired)} checkpoints expired, {len(freed)} objects deleted"
            stores.append(lambda newest: newest, done)
    return GcReport(expired=tuple(expired), objects=len(freed), bytes=sum(freed))


def finish_gc(stores: Stores) -> None:
    """Finish the gc that died, if one did. The caller holds the lock, so none is running.

    This includes a gc of another owner: the lock shows that it is dead (ADR 0020).
    """
    condemned = stores.oplog.newest().condemned
    if condemned is not None:
        delete(stores, condemned)
        stores.append(lambda newest: newest, "finished a gc that was interrupted")


def condemn(stores: Stores, left: Remaining, *, owner: str) -> Condemned | None:
    """Append an operation that condemns the next part of what is left; None when nothing is."""
    condemned = None

    def choose(newest: Operation) -> Operation:
        nonlocal condemned
        _spare(stores, left, newest)
        condemned = left.next_part(owner=owner, since=newest.seq + 1)
        if condemned is None:
            raise _NothingLeftError
        return replace(newest, condemned=condemned)

    try:
        stores.append(choose, "gc condemned what it will delete")
    except _NothingLeftError:
        return None
    assert condemned is not None
    left.take(condemned)
    return condemned


def delete(stores: Stores, condemned: Condemned) -> None:
    """Carry out what an operation announces; it may already have been done in part."""
    stores.catalog.expire(condemned.checkpoints, Expiry(time=stores.now(), why=condemned.why))
    stores.objects.delete(condemned.digests)


def _spare(stores: Stores, left: Remaining, newest: Operation) -> None:
    """Keep what any operation since the sweep began refers to: an undo may bring it back."""
    try:
        for operation in stores.oplog.between(left.seen, newest):
            left.spare(operation.refs.values())
    except NotFoundError:  # it was pruned after many others
        left.spare({*stores.catalog.live(), *newest.refs.values()} - left.expiring.keys())
        left.spare(newest.refs.values())
    left.seen = newest.seq


class _NothingLeftError(Exception):
    """There is nothing to condemn."""

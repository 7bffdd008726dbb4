"""Execute: carries out a plan, and finishes a gc that died."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.documents.expiry import EXPIRY_ANCESTORS_MAX, Expiry
from ckptstore.errors import NotFoundError
from ckptstore.gc.remaining import find_remaining
from ckptstore.store.live import READS_MAX

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Condemned, Operation
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


def execute_plan(stores: Stores, plan: GcPlan, *, grace: float) -> GcReport:
    """Execute a plan: its checkpoints expire, unless something refers to them now."""
    with stores.lock, stores.storage.lock():
        finish_gc(stores)
        stores.storage.sweep()
        listed_at = stores.now()
        report = delete_remaining(stores, find_remaining(stores, plan, grace=grace))
        stores.listed_at = listed_at
    return report


def delete_remaining(stores: Stores, left: Remaining) -> GcReport:
    """Delete what is left, part by part. The caller holds the storage's lock."""
    owner = secrets.token_hex(8)
    while condemned := condemn(stores, left, owner=owner):
        delete(stores, condemned)
    if left.expired or left.objects:
        done = f"gc: {len(left.expired)} checkpoints expired, {left.objects} objects deleted"
        stores.append(lambda newest: newest, done)
    return GcReport(expired=tuple(left.expired), objects=left.objects, bytes=left.bytes)


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
    now = stores.now()
    expiries = {
        id: Expiry(
            time=now, why=condemned.why, ancestors=_ancestors(stores, id, condemned.checkpoints)
        )
        for id in condemned.checkpoints
    }
    stores.catalog.expire(expiries)
    stores.objects.delete(condemned.digests)


def _ancestors(
    stores: Stores, id: Digest, expiring: Collection[Digest]
) -> tuple[Digest, ...] | None:
    """Return the nearest ancestors of a checkpoint that stay, unless these are hard to find."""
    with stores.live.lock:
        manifest = stores.live.manifests.get(id)
        if manifest is None:
            return None
        found = stores.live.before(manifest.parents, without=expiring, reads_max=READS_MAX)
    return found if found is not None and len(found) <= EXPIRY_ANCESTORS_MAX else None


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

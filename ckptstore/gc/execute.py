"""Execute: carries out a plan, and finishes a gc that died."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.documents.expiry import EXPIRY_ANCESTORS_MAX, Expiry
from ckptstore.errors import NotFoundError, StorageError
from ckptstore.gc.judge import REPEATED
from ckptstore.gc.remaining import find_remaining
from ckptstore.store.live import READS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container

    from ckptstore.digest import Digest
    from ckptstore.documents.author import Author
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.judge import RulesAt
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
        temporary_bytes: The bytes that killed processes had left half written, also deleted.
        warning: As in `GcPlan`.
    """

    expired: tuple[Digest, ...]
    objects: int
    bytes: int
    temporary_bytes: int = 0
    warning: str = ""


def execute_plan(stores: Stores, plan: GcPlan, rules_at: RulesAt) -> GcReport:
    """Execute a plan: its checkpoints expire, unless anything keeps them now."""
    with stores.exclusive():
        swept = stores.storage.sweep()
        finish_gc(stores)
        listed_at = stores.now()
        left = find_remaining(stores, plan, rules_at)
        report = delete_remaining(stores, left)
        stores.note_missing(left.seen)
        stores.listed_at = listed_at
        stores.storage.hold_reserve()
    return replace(report, temporary_bytes=swept)


def delete_remaining(stores: Stores, left: Remaining) -> GcReport:
    """Delete what is left, part by part. The caller holds the storage's lock."""
    owner = secrets.token_hex(8)
    unrecorded: dict[Digest, Expiry] = {}
    while condemned := condemn(stores, left, owner=owner):
        unrecorded |= delete(stores, condemned, by=stores.author())
        if not left.has_little_room:
            record(stores, unrecorded)
    record(stores, unrecorded)
    if left.expired or left.objects:
        done = f"gc: {len(left.expired)} checkpoints expired, {left.objects} objects deleted"
        end(stores, done, gone=set(left.expired))
    if left.has_little_room:
        stores.storage.hold_reserve()
    return GcReport(
        expired=tuple(left.expired),
        objects=left.objects,
        bytes=left.bytes,
        warning=stores.warning(left.notes),
    )


def finish_gc(stores: Stores) -> None:
    """Finish the gc that died, if one did. The caller holds the lock, so none is running.

    This includes a gc of another owner: the lock shows that it is dead (ADR 0020).
    """
    newest = stores.oplog.newest()
    condemned = newest.condemned
    if condemned is not None:
        stores.oplog.check_store()
        is_its_own = newest.seq == condemned.since  # others that came meanwhile carry it along
        record(stores, delete(stores, condemned, by=newest.by if is_its_own else None))
        end(stores, "finished a gc that was interrupted")


def condemn(stores: Stores, left: Remaining, *, owner: str) -> Condemned | None:
    """Append an operation that condemns the next part of what is left; None when nothing is.

    When there is no room for it, it is made as small as possible, and what can be freed without an
    operation makes room for it.
    """
    try:
        return _condemn(stores, left, partial(left.next_part, owner=owner))
    except StorageError as error:
        if not error.is_full:
            raise
    make_room(stores)
    try:
        return _condemn(stores, left, partial(left.least_part, owner=owner))
    except StorageError as error:
        if not error.is_full:
            raise
        raise StorageError(
            "The disk is full, and gc has to write a few KiB before it can delete anything. "
            f"Delete some other file there and repeat it. {error}"
        ) from error.__cause__


def _condemn(
    stores: Stores, left: Remaining, part: Callable[..., Condemned | None]
) -> Condemned | None:
    condemned = None

    def choose(newest: Operation) -> Operation:
        nonlocal condemned
        _spare(stores, left, newest)
        condemned = part(since=newest.seq + 1)
        if condemned is None:
            raise NothingLeftError
        return replace(newest, condemned=condemned)

    try:
        stores.append(choose, "gc condemned what it will delete")
    except NothingLeftError:
        return None
    assert condemned is not None
    left.take(condemned)
    return condemned


def delete(
    stores: Stores, condemned: Condemned, *, by: Author | None = None
) -> dict[Digest, Expiry]:
    """Carry out what an operation announces; it may already have been done in part.

    Nothing is written, so that a full disk has room before anything is (ADR 0035).

    Args:
        stores: The parts of the repository.
        condemned: The checkpoints and objects.
        by: The process that condemned them, if known.

    Returns:
        The expiries that remain to be recorded.
    """
    if condemned.why == REPEATED.text:  # all that is known of them is known of the others
        stores.catalog.drop(condemned.checkpoints)
        stores.objects.delete(condemned.digests)
        return {}
    now = stores.now()
    expiries = {
        id: Expiry(
            time=now,
            why=condemned.why,
            ancestors=_ancestors(stores, id, condemned.checkpoints),
            by=by,
        )
        for id in condemned.checkpoints
    }
    with_room(stores, lambda: stores.catalog.expire(condemned.checkpoints))
    stores.objects.meter.begin("deleted", len(condemned.digests))
    stores.objects.delete(condemned.digests)
    return expiries


def record(stores: Stores, unrecorded: dict[Digest, Expiry]) -> None:
    """Record when and why checkpoints expired; on a full disk they are left for the next call."""
    try:
        stores.catalog.record(unrecorded)
    except StorageError as error:
        if not error.is_full:
            raise
    else:
        unrecorded.clear()


def end(stores: Stores, done: str, *, gone: Container[Digest] = ()) -> None:
    """Append an operation that condemns nothing, without the entries of deleted checkpoints."""

    def choose(newest: Operation) -> Operation:
        left = tuple(entry for entry in newest.let_go if entry.id not in gone)
        return replace(newest, let_go=left)

    with_room(stores, lambda: stores.append(choose, done))


def with_room(stores: Stores, write: Callable[[], object]) -> None:
    """Write something. On a full disk make room for it first."""
    try:
        write()
    except StorageError as error:
        if not error.is_full or not make_room(stores):
            raise
        write()


def make_room(stores: Stores) -> bool:
    """Free what can be freed without writing anything, and return whether there was anything."""
    swept, pruned = stores.storage.sweep(), stores.oplog.prune()
    return stores.storage.release_reserve() or bool(swept or pruned)


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
    """Keep everything that is kept now or that any operation since the sweep began refers to.

    An undo may bring the latter back.
    """
    is_changed, before = False, left.seen
    try:
        for operation in stores.oplog.between(left.seen.seq, newest):
            left.spare(operation.refs.values())
            is_new = operation.seq > before.seq
            is_changed |= is_new and (bool(operation.note) or operation.state != before.state)
            before = operation
    except NotFoundError:  # it was pruned after many others
        left.spare({*stores.catalog.live(), *newest.refs.values()} - left.expiring.keys())
        left.spare(newest.refs.values())
        is_changed = True
    if is_changed:
        left.judge_again(newest)
    left.seen = newest


class NothingLeftError(Exception):
    """There is nothing to condemn."""

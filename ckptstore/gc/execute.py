"""Execute: carries out a plan, one part of what is to go after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.errors import NotFoundError, StorageError
from ckptstore.gc.deletion import delete, end, make_room, record
from ckptstore.gc.finish import alone, begin
from ckptstore.gc.ownership import OvertakenError
from ckptstore.gc.remaining import find_remaining

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.digest import Digest
    from ckptstore.documents.expiry import Expiry
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.judge import RulesAt
    from ckptstore.gc.ownership import Ownership
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

    def run(ownership: Ownership) -> GcReport:
        swept = stores.storage.sweep()
        begin(stores)
        listed_at = stores.now()
        left = find_remaining(stores, plan, rules_at)
        report = delete_remaining(stores, left, ownership)
        stores.note_missing(left.seen)
        stores.listed_at = listed_at
        stores.storage.hold_reserve()
        return replace(report, temporary_bytes=swept)

    return alone(stores, run)


def delete_remaining(stores: Stores, left: Remaining, ownership: Ownership) -> GcReport:
    """Delete what is left, part by part."""
    unrecorded: dict[Digest, Expiry] = {}
    while condemned := condemn(stores, left, ownership):
        unrecorded |= delete(stores, condemned, ownership=ownership, by=stores.author())
        if not left.has_little_room:
            record(stores, unrecorded)
    record(stores, unrecorded)
    if left.expired or left.objects:
        done = f"gc: {len(left.expired)} checkpoints expired, {left.objects} objects deleted"
        end(stores, ownership, done, gone=set(left.expired))
    if left.has_little_room:
        stores.storage.hold_reserve()
    return GcReport(
        expired=tuple(left.expired),
        objects=left.objects,
        bytes=left.bytes,
        warning=stores.warning(left.notes),
    )


def condemn(stores: Stores, left: Remaining, ownership: Ownership) -> Condemned | None:
    """Append an operation that condemns the next part of what is left; None when nothing is.

    When there is no room for it, it is made as small as possible, and what can be freed without an
    operation makes room for it.
    """
    try:
        return _condemn(stores, left, ownership, partial(left.next_part, owner=ownership.owner))
    except StorageError as error:
        if not error.is_full:
            raise
    make_room(stores)
    try:
        return _condemn(stores, left, ownership, partial(left.least_part, owner=ownership.owner))
    except StorageError as error:
        if not error.is_full:
            raise
        raise StorageError(
            "The disk is full, and gc has to write a few KiB before it can delete anything. "
            f"Delete some other file there and repeat it. {error}"
        ) from error.__cause__


def _condemn(
    stores: Stores,
    left: Remaining,
    ownership: Ownership,
    part: Callable[..., Condemned | None],
) -> Condemned | None:
    condemned = None

    def choose(newest: Operation) -> Operation:
        nonlocal condemned
        _spare(stores, left, newest, ownership)
        condemned = part(since=newest.seq + 1)
        if condemned is None:
            raise NothingLeftError
        return replace(newest, condemned=condemned)

    try:
        ownership.append(choose, "gc condemned what it will delete")
    except NothingLeftError:
        return None
    assert condemned is not None
    left.take(condemned)
    return condemned


def _spare(stores: Stores, left: Remaining, newest: Operation, ownership: Ownership) -> None:
    """Keep everything that is kept now or that any operation since the sweep began refers to.

    An undo may bring the latter back. If another gc has run meanwhile, this one begins again.
    """
    is_changed, before = False, left.seen
    try:
        for operation in stores.oplog.between(left.seen.seq, newest):
            ownership.check_other(operation)
            left.spare(operation.refs.values())
            is_new = operation.seq > before.seq
            is_changed |= is_new and (bool(operation.note) or operation.state != before.state)
            before = operation
    except NotFoundError:  # it was pruned after many others
        if ownership.is_unsure:
            raise OvertakenError from None
        left.spare({*stores.catalog.live(), *newest.refs.values()} - left.expiring.keys())
        left.spare(newest.refs.values())
        is_changed = True
    if is_changed:
        left.judge_again(newest)
    left.seen = newest


class NothingLeftError(Exception):
    """There is nothing to condemn."""

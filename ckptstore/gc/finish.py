"""Finish: a gc runs while no other does, and finishes one that died before (docs/adr/0060).

The lock of a local folder shows that a gc has died. Elsewhere only time does: a gc deletes nothing
once its lease is over, and requests that it sent before have arrived within the margin. Both are
counted by the storage's clock, from when the operation was stored that names the owner.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from ckptstore import moment
from ckptstore.errors import CkptStoreError, ConflictError, CorruptError, NotFoundError
from ckptstore.gc.deletion import delete, end, record
from ckptstore.gc.ownership import OvertakenError, Ownership, TakenOverError
from ckptstore.store import condemned as rule
from ckptstore.times import to_the_minute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.stores import Stores

Result = TypeVar("Result")

READ_ATTEMPTS = 10  # of a gc whose reads another one disturbs
POLL_SECONDS, POLL_SECONDS_MAX = 0.1, 5.0  # doubled each time, and scattered
NOTICE_SECONDS = 1.0  # shorter waits are not reported
GC_PATIENCE_SECONDS = 30.0  # in which a gc that is at work deletes a part of what it condemned
_log = logging.getLogger(__name__)
sleep = time.sleep


def alone(stores: Stores, run: Callable[[Ownership], Result]) -> Result:
    """Run a gc while no other does.

    Args:
        stores: The parts of the repository.
        run: Calls `begin` before it reads anything. Where locks do not reach all processes, it is
            called again as long as other gcs come first.

    Raises:
        ConflictError: Another gc may be at work, and makes no progress.
        TakenOverError: Another process took over this one.
    """
    if not stores.storage.lease_seconds:
        with stores.exclusive():
            return run(Ownership(stores))
    for attempt in count(1):
        while condemned := stores.oplog.newest().condemned:
            _wait(stores, condemned, patience=GC_PATIENCE_SECONDS)
        since = stores.oplog.newest().seq
        ownership = Ownership(stores)
        try:
            with stores.exclusive(), _remembered(stores, ownership):
                return run(ownership)
        except OvertakenError:
            continue
        except (CorruptError, NotFoundError):
            if ownership.held is not None:
                ownership.check(stores.oplog.newest())
                raise
            if attempt >= READ_ATTEMPTS or not is_beside_gc(stores, since):
                raise
    raise AssertionError


def begin(stores: Stores) -> None:
    """Finish the gc that died, if one did. Where locks do not reach all processes, begin again."""
    if not stores.storage.lease_seconds:
        finish_gc(stores)
    elif stores.oplog.newest().condemned is not None:
        raise OvertakenError


def wait_for_gc(stores: Stores, met: Condemned | None) -> None:
    """Return once nothing is being deleted that a writer met; finish a gc that died.

    Args:
        stores: The parts of the repository.
        met: What an operation condemned; None for what the newest one condemns.
    """
    if not stores.storage.lease_seconds:
        with stores.storage.lock():
            finish_gc(stores)
        return
    condemned = met or stores.oplog.newest().condemned
    if condemned is not None:
        _wait(stores, condemned)


def finish_gc(stores: Stores) -> None:
    """Finish the gc that died, if one did. The caller has shown that it did.

    Locally the lock, which the caller holds, shows that even for a gc of another owner (ADR 0020).
    """
    newest = stores.oplog.newest()
    condemned = newest.condemned
    if condemned is None:
        return
    stores.oplog.check_store()
    is_its_own = newest.seq == condemned.since  # others that came meanwhile carry it along
    _finish(stores, condemned, by=newest if is_its_own else None)


def _finish(stores: Stores, condemned: Condemned, *, by: Operation | None) -> None:
    """Delete what a dead gc condemned. by: its operation, if that is the newest."""
    ownership = Ownership(stores, held=condemned)
    with _remembered(stores, ownership):
        if stores.storage.lease_seconds:
            ownership.take_over("took over a gc that was interrupted")
        author = None if by is None else by.by
        record(stores, delete(stores, condemned, ownership=ownership, by=author))
        end(stores, ownership, "finished a gc that was interrupted")


def is_beside_gc(stores: Stores, since: int) -> bool:
    """Return whether a gc has deleted anything since an operation, or is about to."""
    try:
        return any(
            operation.condemned for operation in stores.oplog.between(since, stores.oplog.newest())
        )
    except NotFoundError:  # pruned, so this is unknown
        return True


def looks() -> Iterator[int]:
    """Yield the number of each look, after longer and longer pauses that are scattered."""
    seconds = POLL_SECONDS
    for number in count():
        yield number
        sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311
        seconds = min(seconds * 2, POLL_SECONDS_MAX)


@contextmanager
def _remembered(stores: Stores, ownership: Ownership) -> Iterator[None]:
    """Remember what a gc leaves condemned that fails here, so that this handle need not wait."""
    try:
        yield
    except BaseException:
        if ownership.held is not None:
            stores.left_condemned = ownership.held
        raise


def _wait(stores: Stores, condemned: Condemned, *, patience: float | None = None) -> None:
    """Return once the newest operation no longer condemns just this; take over when that is due.

    patience: seconds after which to give up; None for no limit.
    """
    began, noticed, deadline = moment.now(), False, None
    for _ in looks():
        newest = stores.oplog.newest()
        if newest.condemned != condemned:
            return
        if deadline is None:
            deadline = _Deadline(stores, newest)
        if condemned == stores.left_condemned or deadline.is_over():
            with suppress(TakenOverError):  # which the next look shows
                is_its_own = newest.seq == condemned.since
                _finish(stores, condemned, by=newest if is_its_own else None)
            continue
        if patience is not None and began.seconds_ago >= patience:
            raise ConflictError(
                f"Another gc{_of(stores, condemned)} is at work here, or has died. Retry when it "
                f"has ended, or after {deadline}, when any process may finish it."
            )
        if not noticed and began.seconds_ago >= NOTICE_SECONDS:
            noticed = True
            _log.warning(
                "Waiting for a gc%s to delete what is needed here, at the latest until %s.",
                _of(stores, condemned),
                deadline,
            )


def _of(stores: Stores, condemned: Condemned) -> str:
    """Return who condemned something, for a message."""
    with suppress(CkptStoreError):
        by = stores.oplog.read(condemned.since).by if condemned.since else None
        if by is not None and by.who:
            return f" of {by.who}"
    return ""


class _Deadline:
    """When what an operation condemns may be taken over, by the storage's clock.

    If the operation that condemned it was pruned, later ones or this look show that it is older.
    """

    def __init__(self, stores: Stores, newest: Operation) -> None:
        assert newest.condemned is not None
        self._storage = stores.storage
        present = self._storage.now()
        stored = stores.oplog.stored_by(newest.condemned.since or newest.seq)
        self._end = min(present, present if stored is None else stored) + rule.seconds_until_dead(
            self._storage
        )
        self._looked, self._left = moment.now(), self._end - present

    def __str__(self) -> str:
        return f"{to_the_minute(int((self._end + 59) * 1e6))} by the clock of the storage"

    def is_over(self) -> bool:
        """Look at the storage's clock, unless by that of this machine it is too early for that."""
        if self._looked.seconds_ago >= self._left > 0:
            self._looked, self._left = moment.now(), self._end - self._storage.now()
        return self._left <= 0

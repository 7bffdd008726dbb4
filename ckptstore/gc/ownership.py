"""Ownership: which process may delete what an operation condemns (docs/adr/0020, docs/adr/0060).

Where the lock of a storage excludes every other process, its holder may, for as long as it holds
it. Elsewhere the newest operation names the owner, for the storage's `lease_seconds` at a time. The
owner counts them by its own clocks, from before it appended the operation, and looks before each
request that deletes. Once they are over it has to append the same again, as has any process that
takes over. The numbers of operations are unique, so of several that try one wins.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore import moment
from ckptstore.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.stores import Stores
    from ckptstore.moment import Moment

BULK = 1000  # the most keys that are deleted after one look


class OvertakenError(Exception):
    """Another gc came first, before this one condemned anything: begin again."""


class TakenOverError(ConflictError):
    """Another process took over a gc, so this one deletes nothing more."""


class Ownership:
    """The right of one gc to delete what the newest operation condemns.

    Args:
        stores: The parts of the repository.
        held: What the newest operation condemns, to be finished; None for a gc that begins.

    Attributes:
        owner: The random name of the gc.
        held: What it condemned last and has not released.
    """

    def __init__(self, stores: Stores, *, held: Condemned | None = None) -> None:
        self.owner = secrets.token_hex(8)
        self.held = held
        self._stores = stores
        self._lease = stores.storage.lease_seconds
        self._began: Moment | None = None  # before the operation of `held` was appended

    @property
    def is_unsure(self) -> bool:
        """True before the first operation, where only that shows whether another gc is running."""
        return bool(self._lease) and self.held is None

    def append(self, choose: Callable[[Operation], Operation], done: str) -> None:
        """Append what `choose` makes of the newest operation with nothing condemned.

        Raises:
            OvertakenError: Another gc condemns something, and this one has not.
            TakenOverError: Another process took over, or has even finished this gc.
        """
        began = moment.now()

        def owned(newest: Operation) -> Operation:
            nonlocal began
            self.check(newest)
            chosen = choose(replace(newest, condemned=None))
            began = moment.now()
            return chosen

        appended = self._stores.append(owned, done)
        self.held, self._began = appended.condemned, began

    def check(self, newest: Operation) -> None:
        """Raise the error of `append` unless the newest operation has exactly what this holds."""
        if not self._lease or newest.condemned == self.held:
            return
        if self.held is None:
            raise OvertakenError
        raise TakenOverError(
            "Another process took over this gc, as it seemed to have died. Nothing is lost, and it "
            "deletes nothing more. Run gc again."
        )

    def check_other(self, operation: Operation) -> None:
        """Raise OvertakenError if another gc was at work as of an operation since this one read."""
        condemned = operation.condemned
        if self._lease and condemned is not None and condemned.owner != self.owner:
            raise OvertakenError

    def take_over(self, done: str) -> None:
        """Append what is held once more, by this owner and with a new time of its own."""
        held = self.held
        assert held is not None

        def choose(newest: Operation) -> Operation:
            since = newest.seq + 1
            return replace(newest, condemned=replace(held, owner=self.owner, since=since))

        self.append(choose, done)

    def look(self) -> None:
        """Return if this process may send one more request that deletes.

        Raises:
            TakenOverError: It may not.
        """
        while self._lease and (self._began is None or self._began.seconds_ago >= self._lease):
            self.take_over("gc goes on with what it condemned")

    def bulks(self, digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
        """Yield digests in the parts that one request deletes, each after a look."""
        if not self._lease:
            yield digests
            return
        for start in range(0, len(digests), BULK):
            self.look()
            yield digests[start : start + BULK]

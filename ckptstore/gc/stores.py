"""Stores: what a gc reads and changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore
    from ckptstore.store.oplog import Oplog


@dataclass(frozen=True, slots=True)
class Stock:
    """The objects that are stored: their sizes, and those younger than the grace time."""

    sizes: dict[Digest, int]
    young: set[Digest]


@dataclass(frozen=True, slots=True)
class Stores:
    """The parts of one repository. now: returns UTC in microseconds since 1970."""

    storage: Storage
    objects: ObjectStore
    oplog: Oplog
    catalog: Catalog
    now: Callable[[], int]

    def live(self, newest: Operation) -> dict[Digest, float]:
        """Return the checkpoints that have their arrays, each with the time it was stored at.

        CorruptError when a branch or a tag names any other.
        """
        live = self.catalog.live()
        for name, id in newest.refs.items():
            if id not in live:
                raise CorruptError(
                    f"Checkpoint {id.short}, which {name!r} names, is missing. "
                    "Run verify; gc has done nothing."
                )
        for id in newest.condemned.checkpoints if newest.condemned else ():
            live.pop(id, None)
        return live

    def stock(self, *, grace: float) -> Stock:
        """List the objects; those put within the grace time, in seconds, are young."""
        latest = self.storage.now() - grace
        stock = Stock(sizes={}, young=set())
        for digest, item in self.objects.list():
            if digest:
                stock.sizes[digest] = item.size
                if item.modified > latest:
                    stock.young.add(digest)
        return stock

    def append(self, choose: Callable[[Operation], Operation], done: str) -> None:
        """Append what `choose` makes of the newest operation with nothing condemned."""

        def complete(newest: Operation) -> Operation:
            chosen = choose(replace(newest, condemned=None))
            return replace(chosen, done=done, undoes=None, time=self.now())

        self.oplog.append(complete)

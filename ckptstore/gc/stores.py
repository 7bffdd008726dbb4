"""Stores: what a gc reads and changes, and what it remembers from one run to the next."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple

from ckptstore.documents.let_go import MISSING, LetGo, limited
from ckptstore.documents.settings import GRACE_SECONDS
from ckptstore.errors import CorruptError
from ckptstore.forks import free_in_child
from ckptstore.gc.marks import Marks
from ckptstore.gc.sizes import Sizes
from ckptstore.store.condemned import commit_seconds
from ckptstore.store.lost import is_missing, missing_ancestors, missing_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.author import Author
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.live import LiveCheckpoints
    from ckptstore.store.objects import ObjectStore
    from ckptstore.store.oplog import Oplog

MISSING_MICROSECONDS = int(GRACE_SECONDS * 1e6)  # for which gc waits for a missing checkpoint
NOTED_MAX = 50
STOCK_PART = 1 << 14  # objects that are looked at together


class Stocked(NamedTuple):
    """An object as the listing shows it.

    young_seconds: for how long it remains within the grace time; 0 when it was put before.
    """

    digest: Digest
    size: int
    young_seconds: float


@dataclass(slots=True, kw_only=True)
class Stores:
    """The parts of one repository.

    live: the checkpoints that have not expired. marks: the objects that they reached at the last
    gc. sizes: bytes of checkpoints, for a policy with a limit. now: returns UTC in microseconds
    since 1970. author: returns the author of operations. listed_at: when a gc last listed all
    objects. left_condemned: what a gc of this handle condemned before it failed. lock: held while
    `marks` are used, and taken before the storage's.
    """

    storage: Storage
    objects: ObjectStore
    oplog: Oplog
    catalog: Catalog
    live: LiveCheckpoints
    now: Callable[[], int]
    author: Callable[[], Author]
    marks: Marks = field(init=False)
    sizes: Sizes = field(init=False)
    lock: RLock = field(init=False, default_factory=lambda: free_in_child(RLock()))
    listed_at: int | None = None
    left_condemned: Condemned | None = None

    def __post_init__(self) -> None:
        self.marks, self.sizes = Marks(self.catalog), Sizes(self.catalog)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of these stores, then the storage's, which may not reach all processes."""
        with self.lock, self.storage.lock():
            yield

    def is_listing_due(self) -> bool:
        """Return True when no gc has listed all objects since the youngest became leftovers."""
        microseconds = int(commit_seconds(self.storage) * 1e6)
        return self.listed_at is None or not 0 <= self.now() - self.listed_at < microseconds

    def check_refs(self, newest: Operation) -> None:
        """Raise CorruptError when a branch or a tag names a checkpoint that is not live."""
        for name, id in newest.refs.items():
            if id not in self.live.manifests:
                if is_missing(id, self.catalog):
                    raise missing_head(name, id, self.catalog)
                try:
                    self.catalog.manifest(id)
                except CorruptError as error:
                    raise CorruptError(
                        f"The checkpoint that {name!r} names is damaged. {error}"
                    ) from error
                raise CorruptError(
                    f"Checkpoint {id.short}, which {name!r} names, has expired, as where older "
                    "operations were put over newer ones. Gc has done nothing. Run verify."
                )

    def warning(self, notes: Sequence[str] = ()) -> str:
        """Return the warnings of a gc, and why nothing can be deleted, as far as `live` knows."""
        blocking = self.blocking(self.oplog.newest()) if self.live.missing else ()
        return " ".join(filter(None, (missing_ancestors(blocking, self.catalog), *notes)))

    def blocking(self, newest: Operation) -> set[Digest]:
        """Return the missing checkpoints of the history for which nothing may be deleted yet."""
        noted = {entry.id: entry.time for entry in newest.let_go if entry.way == MISSING}
        latest = self.now() - MISSING_MICROSECONDS
        return {id for id in self.live.missing if noted.get(id, latest + 1) > latest}

    def note_missing(self, newest: Operation) -> None:
        """Record since when checkpoints of the history are known to be missing."""
        noted = {entry.id for entry in newest.let_go if entry.way == MISSING}
        time = self.now()
        entries = [
            LetGo(id=id, name="", way=MISSING, time=time)
            for id in sorted(self.live.missing - noted)[:NOTED_MAX]
        ]
        if entries and len(noted) < NOTED_MAX:
            self.append(
                lambda newest: replace(newest, let_go=limited([*newest.let_go, *entries])),
                f"gc noted that checkpoint {entries[0].id and entries[0].id.short} is missing",
            )

    def freed(self, ids: Sequence[Digest]) -> list[int]:
        """Return the bytes that each live checkpoint frees once those before it have expired."""
        return self.sizes.freed([self.live.manifests[id] for id in ids])

    def stock(self, *, grace: float) -> Iterator[list[Stocked]]:
        """List the objects in parts. grace: in seconds, at most that of a commit here counts."""
        latest = self.storage.now() - min(grace, commit_seconds(self.storage))
        listed = (
            Stocked(digest, item.size, max(item.modified - latest, 0.0))
            for digest, item in self.objects.list()
            if digest
        )
        while part := list(islice(listed, STOCK_PART)):
            yield part

    def append(self, choose: Callable[[Operation], Operation], done: str) -> Operation:
        """Append what `choose` makes of the newest operation, and return it."""

        def complete(newest: Operation) -> Operation:
            return choose(newest).stamped(time=self.now(), done=done, by=self.author())

        return self.oplog.append(complete)

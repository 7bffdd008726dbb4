"""Side: one of the two repositories of a transfer, and the documents that both read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.history import ancestors
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store.catalog import EXPIRED, LIVE
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptstore.digest import Digest
    from ckptstore.documents.author import Author
    from ckptstore.documents.manifest import Manifest
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.objects import ObjectStore
    from ckptstore.store.oplog import Oplog
    from ckptstore.store.refs import Refs
    from ckptstore.store.resolver import Resolver

FAR_THREADS, NEAR_THREADS = 32, 8  # they wait for answers, or for the disk
ONE_BY_ONE = 4  # manifests that are read before all others are read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The parts of one repository.

    chunk_bytes: of its largest chunks. now: returns UTC in microseconds since 1970. author: returns
    the author of an operation.
    """

    chunk_bytes: int
    storage: Storage
    objects: ObjectStore
    catalog: Catalog
    oplog: Oplog
    notes: Notes
    refs: Refs
    resolver: Resolver
    now: Callable[[], int]
    author: Callable[[], Author]

    @property
    def is_far(self) -> bool:
        """True where each look costs a round trip, so that one listing is better than many."""
        return self.storage.is_far

    @property
    def threads(self) -> int:
        """How many requests are worth making at once."""
        return FAR_THREADS if self.is_far else NEAR_THREADS

    @property
    def place(self) -> str:
        """The URL without options, for messages."""
        return self.storage.url.partition("?")[0]


class Folder:
    """Which manifests a folder of a repository has: by one listing if that is far."""

    def __init__(self, side: Side, folder: str) -> None:
        self._side, self._folder = side, folder
        self._listed: set[Digest] | None = None

    def __contains__(self, id: Digest) -> bool:
        if not self._side.is_far:
            return self._side.catalog.is_in(id, self._folder)
        if self._listed is None:
            try:
                self._listed = {id for id, _ in self._side.catalog.list(self._folder) if id}
            except UnlistedError:
                return self._side.catalog.is_in(id, self._folder)
        return id in self._listed


@dataclass(slots=True)
class Sides:
    """Both repositories, as far as one plan looks at them.

    Manifests are read on the near side first, since they never change.
    """

    source: Side
    target: Side
    live_at_source: Folder = field(init=False)
    live_at_target: Folder = field(init=False)
    expired_at_target: Folder = field(init=False)
    _read: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.live_at_source = Folder(self.source, LIVE)
        self.live_at_target = Folder(self.target, LIVE)
        self.expired_at_target = Folder(self.target, EXPIRED)

    @property
    def is_target_near(self) -> bool:
        """True if documents that both have are read at the target; else at the source."""
        return not self.target.is_far

    @property
    def near_catalog(self) -> Catalog:
        """The documents of that side."""
        return (self.target if self.is_target_near else self.source).catalog

    @property
    def threads(self) -> int:
        """How many objects are worth copying at once."""
        return max(self.source.threads, self.target.threads)

    def near(self, id: Digest) -> Manifest | None:
        """Return a manifest if the near side has it."""
        return self.target.catalog.readable(id) if self.is_target_near else self._at_source(id)

    def lookup(self, id: Digest) -> Manifest | None:
        """Return a manifest of either side, but none that only a far target has."""
        manifest = self.near(id)
        return self._at_source(id) if manifest is None and self.is_target_near else manifest

    def history(self, starts: Iterable[Digest]) -> set[Digest]:
        """Return all checkpoints that these were made from, including these."""
        return {id for id, _ in ancestors(starts, self.lookup)}

    def is_made_from(self, id: Digest, older: Digest) -> bool:
        """Return True when a checkpoint is in the history of another, or is that one."""
        return any(found == older for found, _ in ancestors([id], self.lookup))

    def _at_source(self, id: Digest) -> Manifest | None:
        """Return a manifest of the source; from the fifth on, all are read at once if it is far."""
        if self.source.is_far:
            self._read += 1
            if self._read == ONE_BY_ONE + 1:
                self._read_ahead()
        return self.source.catalog.lookup(id)

    def _read_ahead(self) -> None:
        catalog = self.source.catalog
        try:
            ids: Iterable[Digest] = list(catalog.ids())
        except UnlistedError:
            return
        if self.is_target_near:
            ids = (id for id in ids if not self.target.catalog.lookup(id))
        reads = (partial(catalog.readable, id) for id in ids)
        gather(reads, threads=self.source.threads)

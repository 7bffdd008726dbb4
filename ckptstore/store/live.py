"""Live: the checkpoints that have not expired, and how they descend from one another.

A repository may have many more expired checkpoints than live ones, and most questions are only
about the latter. So this is read once, by listing `checkpoints/`, and afterwards brought up to date
from the operations appended since. What lies behind an expired checkpoint is read only when it is
asked for, and from its expiry if that names its live ancestors (docs/adr/0028).
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice
from threading import RLock
from typing import TYPE_CHECKING

from ckptstore.documents.let_go import MISSING
from ckptstore.errors import NotFoundError
from ckptstore.forks import renewed
from ckptstore.history import ancestors, own_chain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.let_go import LetGo
    from ckptstore.documents.manifest import Manifest, PageRef
    from ckptstore.documents.operation import Operation
    from ckptstore.documents.settings import Claim
    from ckptstore.history import OwnChain
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.oplog import Oplog

READS_MAX = 64  # documents that are read for the sake of one expiry, which can do without
LOOK_READS_MAX = 8  # documents that are read behind the oldest checkpoint; one is enough as a rule


class LiveCheckpoints:
    """The live checkpoints as of one operation.

    Attributes:
        manifests: Their manifests by id, with the metrics of notes. They may include manifests of
            commits in progress.
        seq: The number of that operation; None before the first update.
        missing: The checkpoints of the history whose manifests were found to be missing or damaged.
        lock: Held by a user of the above, as another thread may update them.
    """

    def __init__(self, oplog: Oplog, catalog: Catalog, notes: Notes) -> None:
        self._oplog, self._catalog, self._notes = oplog, catalog, notes
        self._begin()
        renewed(self, LiveCheckpoints._begin)  # another thread may have been in the middle

    def _begin(self) -> None:
        self.manifests: dict[Digest, Manifest] = {}
        self.seq: int | None = None
        self.missing: set[Digest] = set()
        self.lock = RLock()
        # Nearest live ancestors of live checkpoints, and a step back from each expired one.
        self._nearest: dict[Digest, tuple[Digest, ...]] = {}
        self._behind: dict[Digest, tuple[Digest, ...]] = {}
        self._noted: dict[Digest, int] = {}  # the number of known notes on each checkpoint

    def update(self, newest: Operation) -> None:
        """Bring this up to date with the newest operation."""
        if self.seq is None or self.seq > newest.seq:
            self.reconcile(newest, self._catalog.live())
            return
        if self.seq == newest.seq:
            return
        try:
            for operation in self._oplog.between(self.seq + 1, newest):
                self._add(operation.refs.values())
                if operation.condemned:
                    self._remove(operation.condemned.checkpoints)
                self._notes.learn(operation)
                self.seq = operation.seq
        except NotFoundError:  # some were pruned
            self.reconcile(newest, self._catalog.live())
        else:
            self._annotate(newest)

    def reconcile(self, newest: Operation, listed: Collection[Digest]) -> None:
        """Bring this up to date with a listing made after the newest operation was read."""
        condemned = set(newest.condemned.checkpoints if newest.condemned else ())
        shared: dict[PageRef, PageRef] = {}  # equal pages of several manifests are in memory once
        new = sorted(set(listed) - self.manifests.keys() - condemned)
        added = {id: manifest.sharing(shared) for id, manifest in self._catalog.manifests(new)}
        self._remove((self.manifests.keys() - listed) | condemned)
        self._insert(added)
        if self.missing:  # what was missing may have been restored
            self._nearest.clear()
            self.missing.clear()
        self.seq = newest.seq
        self._annotate(newest)

    def _annotate(self, newest: Operation) -> None:
        """Add the metrics of new notes to the manifests."""
        self._notes.update(newest)
        self._noted = {id: count for id, count in self._noted.items() if id in self.manifests}
        for id, manifest in self.manifests.items():
            count = self._notes.count(id)
            if count != self._noted.get(id, 0):
                original = self._catalog.manifest(id)
                metrics = self._notes.annotated(id, original).metrics
                self.manifests[id] = replace(manifest, metrics=metrics)
                self._noted[id] = count

    def reached(self, starts: Iterable[Digest]) -> Iterator[tuple[Digest, Manifest]]:
        """Yield the live checkpoints that are reachable from the starts, newest first.

        Nothing is looked up behind the last live one.
        """
        walk = ancestors(starts, self.manifests.get, lambda id, _: self.parents(id))
        return islice(walk, len(self.manifests))

    def own(self, head: Digest, claim: Claim) -> OwnChain:
        """Return the live checkpoints that were committed on a branch, given its head and claim.

        Nothing is looked up behind the last live one.
        """
        left = len(self.manifests)
        if claim.begun:  # replace expired checkpoints by their nearest live ancestor
            begun = (id for start in claim.begun for id in (self.before([start]) or ())[:1])
            claim = replace(claim, begun=tuple(begun))

        def parents(id: Digest, _: Manifest) -> tuple[Digest, ...]:
            nonlocal left
            left -= 1
            return self.parents(id) if left else ()

        return own_chain(head, claim, self.manifests.get, parents)

    def let_go(self, entries: Iterable[LetGo]) -> dict[Digest, LetGo]:
        """Return the live checkpoints behind entries of `let_go`, each with its newest entry.

        Missing manifests are ignored there.
        """
        found: dict[Digest, LetGo] = {}
        starts = [entry for entry in entries if entry.way != MISSING]
        for entry in sorted(starts, key=lambda entry: -entry.time):
            waiting = list(self.before([entry.id]) or ()) if entry.id else []
            while waiting:
                id = waiting.pop()
                if id not in found:
                    found[id] = entry
                    waiting += (
                        self._nearest.get(id) or self.before(self.manifests[id].parents) or ()
                    )
        return found

    def look_behind(self, ids: Iterable[Digest]) -> None:
        """Look for missing manifests behind live checkpoints, as far as a few reads reach."""
        for id in ids:
            if id not in self._nearest:
                parents = self.manifests[id].parents
                nearest = self.before(parents, reads_max=LOOK_READS_MAX, missing=self.missing)
                if nearest is not None:
                    self._nearest[id] = nearest

    def parents(self, id: Digest) -> tuple[Digest, ...]:
        """Return the nearest live ancestors of a live checkpoint."""
        nearest = self._nearest.get(id)
        if nearest is None:
            nearest = self.before(self.manifests[id].parents, missing=self.missing)
            assert nearest is not None  # no limit was given
            self._nearest[id] = nearest
        return nearest

    def before(
        self,
        ids: Iterable[Digest],
        *,
        without: Collection[Digest] = (),
        reads_max: int | None = None,
        missing: set[Digest] | None = None,
    ) -> tuple[Digest, ...] | None:
        """Return these checkpoints, each expired one replaced by its nearest live ancestors.

        without: checkpoints that count as expired. reads_max: documents to read at most; when these
        do not suffice, or a manifest is missing, the result is None. missing: receives the
        checkpoints whose manifests are.
        """
        found: dict[Digest, None] = {}
        seen: set[Digest] = set()
        waiting = deque(ids)
        reads = 0
        while waiting:
            id = waiting.popleft()
            if id in seen:
                continue
            seen.add(id)
            if id in self.manifests and id not in without:
                found[id] = None
                continue
            if id in self.manifests:
                behind: tuple[Digest, ...] | None = self.manifests[id].parents
            else:
                behind = self._behind.get(id)
            if behind is None:
                reads += 2
                if reads_max is not None and reads > reads_max:
                    return None
                behind = self._read_behind(id)
                if behind is None:
                    if missing is not None:
                        missing.add(id)
                    if reads_max is not None:
                        return None
                    continue
            waiting.extendleft(reversed(behind))
        return tuple(found)

    def _read_behind(self, id: Digest) -> tuple[Digest, ...] | None:
        """Read from where a history goes on behind an expired checkpoint; None where it is cut."""
        expiry = self._catalog.expiry(id)
        if expiry is not None and expiry.ancestors is not None:
            behind = expiry.ancestors
        elif manifest := self._catalog.readable(id):
            behind = manifest.parents
        else:
            return None
        self._behind[id] = behind
        return behind

    def _add(self, ids: Iterable[Digest]) -> None:
        """Add checkpoints that refs name, and those of their ancestors that are new."""
        added: dict[Digest, Manifest] = {}
        waiting = list(ids)
        while waiting:
            id = waiting.pop()
            if id not in self.manifests and id not in added:
                added[id] = manifest = self._catalog.manifest(id)
                waiting += (
                    parent
                    for parent in manifest.parents
                    if parent not in self.manifests
                    and parent not in self._behind
                    and self._catalog.is_live(parent)
                    and self._catalog.readable(parent)
                )
        self._insert(added)

    def _insert(self, added: Mapping[Digest, Manifest]) -> None:
        """Add checkpoints once all were read: one is never here without its live parents."""
        self.manifests.update(added)
        for id in added:
            self._behind.pop(id, None)

    def _remove(self, ids: Collection[Digest]) -> None:
        """Note that checkpoints have expired."""
        gone = {id: self.manifests[id] for id in ids if id in self.manifests}
        if not gone:
            return
        for id, manifest in gone.items():
            nearest = self._nearest.pop(id, None)
            self._behind[id] = manifest.parents if nearest is None else nearest
            del self.manifests[id]
        self._nearest = {
            id: nearest for id, nearest in self._nearest.items() if gone.keys().isdisjoint(nearest)
        }

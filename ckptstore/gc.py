"""Gc: checkpoints that a policy gives up expire, and what nothing reaches any more is deleted, beside everybody else.

The order of things:
1. With the storage's lock held, which only one gc has at a time, finish what a gc that died has left.
2. Mark what the checkpoints that stay reach; everything else is garbage.
3. Append an operation that condemns some of it. If others appended first, look at what they refer to now: it stays.
4. Move the manifests of condemned checkpoints to history, durably, then delete the condemned objects.
5. Go on with 3 until nothing is left; then append an operation that condemns nothing.

Everybody else obeys the rule in `ckptstore.store.condemned`. So a delete never hits what anything relies on, whatever the clocks
say, and space is free at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.operation import Condemned
from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.history import ancestors
from ckptstore.retention import Verdict, decide
from ckptstore.store.catalog import key_of as manifest_key
from ckptstore.store.objects import key_of as object_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.retention import Policy
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore
    from ckptstore.store.oplog import Oplog

TEMPORARY_SECONDS = 86_400.0  # a write that takes a day has died
BATCH = 8192  # checkpoints, and objects, that one operation condemns at most
UNREACHABLE = "No branch and no tag reached it."


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What a gc did. expired: checkpoints whose arrays were given up. objects, bytes: what was deleted, as measured."""

    expired: tuple[Digest, ...]
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What a gc would do; nothing is done before `execute`.

    verdicts: every live checkpoint, newest first, kept or not, with every reason. frees: bytes that each one to expire
    sets free; what several of them share is counted for the newest. leftover_objects, leftover_bytes: what interrupted
    commits left behind.
    """

    policy: Policy
    verdicts: tuple[Verdict, ...]
    frees: Mapping[Digest, int]
    leftover_objects: int
    leftover_bytes: int
    _execute: Callable[[GcPlan], GcReport] = field(repr=False, compare=False)

    @property
    def kept(self) -> tuple[Verdict, ...]:
        """The checkpoints that stay."""
        return tuple(verdict for verdict in self.verdicts if verdict.kept)

    @property
    def expired(self) -> tuple[Verdict, ...]:
        """The checkpoints that would expire."""
        return tuple(verdict for verdict in self.verdicts if not verdict.kept)

    @property
    def bytes(self) -> int:
        """Bytes that would be free again."""
        return sum(self.frees.values()) + self.leftover_bytes

    def execute(self) -> GcReport:
        """Do it. What came meanwhile is kept, also a checkpoint that was to expire and has a branch or tag now."""
        return self._execute(self)


@dataclass(frozen=True, slots=True)
class Gc:
    """Plans and does the gc of one repository. now: gives UTC in microseconds since 1970."""

    storage: Storage
    objects: ObjectStore
    oplog: Oplog
    catalog: Catalog
    now: Callable[[], int]

    def plan(
        self, policy: Policy, *, branches: Collection[str] | None = None, grace: float
    ) -> GcPlan:
        """Decide what stays.

        branches: those that the policy is for; None: all. grace: seconds for which what nothing reaches is left, as
        somebody may be making it.
        """
        with self.storage.lock():  # no other gc deletes what is looked at
            newest = self.oplog.newest()
            live = self._live(newest)
            history = _History(self.catalog)
            reachable = decide(
                policy,
                heads=newest.heads,
                tags=newest.tags,
                lookup=history.lookup,
                is_expired=lambda id: id not in live,
                branches=branches,
            )
            verdicts = (*reachable, *self._unreachable(live, reachable, history, grace=grace))
            sizes = self._sizes()
            marks = _Marks(self.catalog)
            named = {verdict.id for verdict in reachable}
            for verdict in verdicts:
                if verdict.kept:
                    marks.add(verdict.manifest, must_be_whole=verdict.id in named)
            kept = set(marks.digests)
            frees = {
                verdict.id: sum(
                    sizes.get(digest, 0)
                    for digest in marks.add(verdict.manifest, must_be_whole=False)
                )
                for verdict in verdicts
                if not verdict.kept
            }
            leftover = self._stale_objects(sizes.keys() - marks.digests, grace=grace)
            reached = _Reached(kept=kept, given_up=marks.digests - kept, unread=marks.unread)
        return GcPlan(
            policy=policy,
            verdicts=verdicts,
            frees=frees,
            leftover_objects=len(leftover),
            leftover_bytes=sum(sizes[digest] for digest in leftover),
            _execute=lambda plan: self._execute(plan, reached, grace=grace),
        )

    def finish(self) -> None:
        """Finish the gc that died, if one did. The caller holds the lock."""
        condemned = self.oplog.newest().condemned
        if condemned is not None:
            self._delete(condemned)
            self._append(lambda newest: newest, None, "finished a gc that was interrupted")

    def _execute(self, plan: GcPlan, reached: _Reached, *, grace: float) -> GcReport:
        """Carry a plan out: its checkpoints expire, unless something refers to them now."""
        with self.storage.lock():
            self.finish()
            self.storage.sweep(seconds=TEMPORARY_SECONDS)
            sweep = self._sweep(plan, reached, grace=grace)
            expired: list[Digest] = []
            freed: list[int] = []
            while (condemned := self._condemn(sweep)) is not None:
                self._delete(condemned)
                expired += condemned.checkpoints
                freed += (sweep.sizes[digest] for digest in condemned.digests)
            if expired or freed:
                done = f"gc: {len(expired)} checkpoints expired, {len(freed)} objects deleted"
                self._append(lambda newest: newest, None, done)
        return GcReport(expired=tuple(expired), objects=len(freed), bytes=sum(freed))

    def _sweep(self, plan: GcPlan, reached: _Reached, *, grace: float) -> _Sweep:
        """What is garbage now when these checkpoints expire; of those that stay, only what the plan did not know is read."""
        newest = self.oplog.newest()
        live = self._live(newest)
        reasons = {
            verdict.id: str(plan.policy) if verdict.branches else UNREACHABLE
            for verdict in plan.expired
            if verdict.id in live and verdict.id not in newest.refs.values()
        }
        staying = live - reasons.keys()
        known = {verdict.id for verdict in plan.kept}
        history = _History(self.catalog)
        named = ancestors(
            newest.refs.values(), lambda id: None if id in known else history.lookup(id)
        )
        marks = _Marks(self.catalog, reached)
        for id, manifest in named:
            if id in staying:
                marks.add(manifest, must_be_whole=True)
                known.add(id)
        for id in sorted(staying - known):
            marks.add(self.catalog.manifest(id), must_be_whole=False)
        sizes = self._sizes()
        unreached = sizes.keys() - marks.digests
        orphans = self._stale_objects(unreached - reached.given_up, grace=grace)
        garbage = (unreached & reached.given_up) | orphans
        return _Sweep(
            catalog=self.catalog,
            marks=marks,
            staying=staying,
            expiring=reasons,
            garbage=garbage,
            order=deque(sorted(garbage)),
            sizes=sizes,
            seen=newest.seq,
        )

    def _condemn(self, sweep: _Sweep) -> Condemned | None:
        """Append an operation that condemns the next part of the garbage; None when there is none."""
        condemned = Condemned()

        def choose(newest: Operation) -> Operation:
            nonlocal condemned
            self._spare(sweep, newest)
            condemned = sweep.next_part()
            if not condemned.checkpoints and not condemned.digests:
                raise _NothingLeftError
            return replace(newest, condemned=condemned)

        try:
            self._append(choose, None, "gc condemned what it is about to delete")
        except _NothingLeftError:
            return None
        sweep.take(condemned)
        return condemned

    def _spare(self, sweep: _Sweep, newest: Operation) -> None:
        """Keep what any operation since the sweep began refers to: an undo may bring it back."""
        try:
            for operation in self.oplog.between(sweep.seen, newest):
                sweep.spare(operation.refs.values())
        except NotFoundError:  # so many came that some were pruned
            sweep.spare({*self.catalog.live_ids(), *newest.refs.values()} - sweep.expiring.keys())
            sweep.spare(newest.refs.values())
        sweep.seen = newest.seq

    def _append(
        self, choose: Callable[[Operation], Operation], condemned: Condemned | None, done: str
    ) -> None:
        def complete(newest: Operation) -> Operation:
            chosen = choose(replace(newest, condemned=condemned))
            return replace(chosen, done=done, undoes=None, time=self.now())

        self.oplog.append(complete)

    def _delete(self, condemned: Condemned) -> None:
        """Do what an operation says is about to be done; it may have been done in part."""
        self.catalog.expire(condemned.checkpoints, Expiry(time=self.now(), why=condemned.why))
        self.objects.delete(condemned.digests)

    def _live(self, newest: Operation) -> set[Digest]:
        """The checkpoints that have their arrays; an error when a branch or a tag names another one."""
        live = self.catalog.live_ids()
        for name, id in newest.refs.items():
            if id not in live:
                raise CorruptError(
                    f"Checkpoint {id.short}, which {name!r} names, is missing. Run verify; gc has done nothing."
                )
        return live - set(newest.condemned.checkpoints if newest.condemned else ())

    def _sizes(self) -> dict[Digest, int]:
        return {digest: size for digest, _, size in self.objects.list() if digest}

    def _unreachable(
        self,
        live: set[Digest],
        reachable: Iterable[Verdict],
        history: _History,
        *,
        grace: float,
    ) -> list[Verdict]:
        """Verdicts on checkpoints that no branch and no tag reaches: deleted branches, commits that lost a race."""
        ids = live - {verdict.id for verdict in reachable}
        keys = {manifest_key(id): id for id in ids}
        stale = {keys[key] for key in self.storage.stale(keys, seconds=grace)}
        verdicts = []
        for id in ids:
            if history.is_cut:
                reason = "a part of the history is missing, and it may be reached from there"
            elif id in stale:
                reason = "no branch and no tag reaches it"
            else:
                reason = "it is new, and somebody may be about to use it"
            kept = history.is_cut or id not in stale
            manifest = self.catalog.manifest(id)
            verdicts.append(
                Verdict(id=id, manifest=manifest, branches=(), kept=kept, reasons=(reason,))
            )
        return sorted(verdicts, key=lambda verdict: (-verdict.manifest.created, verdict.id))

    def _stale_objects(self, digests: Iterable[Digest], *, grace: float) -> set[Digest]:
        keys = {object_key(digest): digest for digest in digests}
        return {keys[key] for key in self.storage.stale(keys, seconds=grace)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reached:
    """The objects that a plan's checkpoints reach: those it keeps, and only those it gives up.

    unread: the pages among them that could not be read, so that nobody knows what they list.
    """

    kept: set[Digest]
    given_up: set[Digest]
    unread: set[Digest]


class _NothingLeftError(Exception):
    """There is nothing to condemn."""


class _History:
    """Manifests by id, each read once; `is_cut` when one that is named somewhere is missing."""

    def __init__(self, catalog: Catalog) -> None:
        self.is_cut = False
        self._catalog = catalog
        self._found: dict[Digest, Manifest | None] = {}

    def lookup(self, id: Digest) -> Manifest | None:
        """A manifest, live or expired."""
        if id not in self._found:
            try:
                self._found[id] = self._catalog.manifest(id)
            except NotFoundError:
                self._found[id] = None
                self.is_cut = True
        return self._found[id]


class _Marks:
    """The objects that some checkpoints reach; each page is read once, in however many checkpoints it is.

    unread: pages that could not be read. One may be there again when a checkpoint needs it whole, so it is tried again.
    """

    def __init__(self, catalog: Catalog, reached: _Reached | None = None) -> None:
        self.digests = set(reached.kept) if reached else set()
        self.unread = set(reached.unread) if reached else set()
        self._catalog = catalog

    def add(self, manifest: Manifest, *, must_be_whole: bool) -> set[Digest]:
        """Add what a checkpoint reaches: the objects that were not marked before.

        must_be_whole: a page that cannot be read is an error that stops the gc, as nobody knows then what is needed. A
        checkpoint that is given up, or that nothing refers to (of a commit that died beside a gc), need not be.
        """
        added = manifest.documents() - self.digests
        for ref, search in self._catalog.searches(manifest):
            if ref.digest in added or ref.digest in self.unread:
                try:
                    listed = search(ref.digest) - self.digests
                    added.update(map(Digest, listed))
                    self.unread.discard(ref.digest)
                except CorruptError:
                    self.unread.add(ref.digest)
                    if must_be_whole:
                        raise
        self.digests |= added
        return added


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """What one gc has yet to delete. expiring: why, by checkpoint. seen: the newest operation that was looked at."""

    catalog: Catalog
    marks: _Marks
    staying: set[Digest]
    expiring: dict[Digest, str]
    garbage: set[Digest]
    order: deque[Digest]
    sizes: Mapping[Digest, int]
    seen: int

    def spare(self, refs: Iterable[Digest]) -> None:
        """Keep what branches and tags refer to now, and what they reach that was made since the sweep began."""
        waiting = list(refs)
        while waiting:
            id = waiting.pop()
            was_expiring = self.expiring.pop(id, None) is not None
            if id in self.staying or (not was_expiring and self.catalog.is_expired(id)):
                continue
            manifest = self.catalog.manifest(id)
            self.staying.add(id)
            self.garbage.difference_update(self.marks.add(manifest, must_be_whole=True))
            if not was_expiring:
                waiting += (parent for parent in manifest.parents if parent not in self.expiring)

    def next_part(self) -> Condemned:
        """What the next operation condemns: checkpoints first, so that none is live without its objects."""
        why = next(iter(self.expiring.values()), "")
        checkpoints = [id for id, reason in self.expiring.items() if reason == why][:BATCH]
        is_last = len(checkpoints) == len(self.expiring)
        waiting = (digest for digest in self.order if digest in self.garbage)
        digests = list(islice(waiting, BATCH)) if is_last else []
        return Condemned(checkpoints=tuple(checkpoints), digests=tuple(digests), why=why)

    def take(self, condemned: Condemned) -> None:
        """These are condemned now."""
        for id in condemned.checkpoints:
            del self.expiring[id]
        self.garbage.difference_update(condemned.digests)
        while self.order and self.order[0] not in self.garbage:
            self.order.popleft()

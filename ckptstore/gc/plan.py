"""Plan: which checkpoints stay and which expire, and what that frees. Nothing is changed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ckptstore.documents.let_go import MISSING
from ckptstore.errors import ConflictError, CorruptError, NotFoundError
from ckptstore.gc.execute import delete_remaining, execute_plan, finish_gc
from ckptstore.gc.marks import marks_of
from ckptstore.gc.remaining import BY_HAND, REPEATED, UNOWNED, UNREACHED, remaining_of
from ckptstore.history import first_parents
from ckptstore.retention import Policies, Verdict, decide, next_to_go
from ckptstore.store.condemned import COMMIT_SECONDS
from ckptstore.store.lost import lost, refuse_without_operations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from typing import Literal

    from ckptstore.digest import Digest
    from ckptstore.documents.let_go import LetGo
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.gc.execute import GcReport
    from ckptstore.gc.stores import Stores

Result = TypeVar("Result")

REPEATED_READS_MAX = 1000
UNLOCKED_ATTEMPTS = 3
CHOSEN = "Expire what was chosen, and keep everything else."
NOT_CHOSEN = "it was not chosen"
NEW = "it is new, and a commit may be about to use it"
INCOMPLETE = "a part of the history is missing, and may need it"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """A plan of a gc; nothing is done before `execute`.

    Attributes:
        sentences: What is kept: a sentence for the policy of all branches, and one for each branch
            with a policy of its own.
        verdicts: Every live checkpoint, newest first, kept or not, with every reason.
        frees: The bytes that each checkpoint to expire frees; what several of them share counts for
            the newest.
        leftover_objects: How many objects interrupted commits left behind.
        leftover_bytes: The bytes of these.
        young_checkpoints: How many checkpoints stay only for the grace time: an operation let them
            go, or no branch and no tag reaches them and a commit may be about to use them.
        young_objects: How many objects stay because only these reach them, or because nothing does
            and they are younger than the grace time themselves.
        young_bytes: The bytes of these.
        young_seconds: The time after which a gc can delete the last of them, from now.
        next_to_go: What stays now, and expires once the next checkpoint of its branch comes.
        temporary_bytes: The bytes of files that killed processes left half written.
        warning: Why nothing can be deleted, and the way out, where a checkpoint of the history is
            missing; and what a policy cannot judge, as by a metric that no checkpoint has. Usually
            empty.
    """

    sentences: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    frees: Mapping[Digest, int]
    leftover_objects: int
    leftover_bytes: int
    young_checkpoints: int
    young_objects: int
    young_bytes: int
    young_seconds: float
    temporary_bytes: int
    next_to_go: tuple[Digest, ...] = ()
    warning: str = ""
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
        """The bytes that would be freed."""
        return sum(self.frees.values()) + self.leftover_bytes + self.temporary_bytes

    def execute(self) -> GcReport:
        """Execute the plan.

        Commits made since planning are kept, and so is a checkpoint that was to expire but has a
        branch or tag by now, or that none reached and one reaches now.

        Returns:
            The result, as measured.

        Raises:
            CorruptError: A page of a checkpoint that stays cannot be read; nothing was deleted that
                such a checkpoint might need.
            StorageError: The storage failed. Repeat the gc; any process that meets what is left of
                this one finishes it.
        """
        return self._execute(self)


def plan_gc(stores: Stores, policies: Policies, *, grace: float) -> GcPlan:
    """Decide what stays.

    A plan only reads, and takes no lock, so that a reader cannot hold up the owner's gc. If another
    gc deletes what is being read, the plan is made again, and the last attempt takes the lock
    (ADR 0030).

    grace: seconds for which unreachable objects and checkpoints are left alone, as a commit may be
    making them.
    """
    return _beside_gc(stores, partial(_plan, stores, policies, grace=grace))


def verdict_on(stores: Stores, policies: Policies, id: Digest, *, grace: float) -> Verdict:
    """Return what a gc would decide about one live checkpoint, without a look at what it frees."""

    def attempt(lock: AbstractContextManager[None]) -> Verdict:
        with stores.lock, lock, stores.live.lock:
            newest = stores.oplog.newest()
            stored = stores.catalog.live()
            stores.live.reconcile(newest, stored)
            judged = judge(stores, newest, policies, grace=grace, stored=stored)
        for verdict in judged.verdicts:
            if verdict.id == id:
                return verdict
        raise NotFoundError(f"Checkpoint {id.short} is not stored.")

    return _beside_gc(stores, attempt)


def plan_expiry(stores: Stores, ids: Collection[Digest]) -> GcPlan:
    """Plan that some live checkpoints expire, and nothing else.

    Raises:
        ConflictError: A branch, tag or lease names one of them, or a branch was started from it.
    """
    return _beside_gc(stores, partial(_plan, stores, Policies(), grace=0.0, chosen=ids))


def _beside_gc(stores: Stores, attempt: Callable[..., Result]) -> Result:
    """Plan without the lock, and again with it if other gcs come in between."""
    for _ in range(UNLOCKED_ATTEMPTS):
        since = stores.oplog.newest().seq
        try:
            return attempt(lock=nullcontext())
        except (CorruptError, NotFoundError):
            if not _is_beside_gc(stores, since):
                raise
    return attempt(lock=stores.storage.lock())


def _is_beside_gc(stores: Stores, since: int) -> bool:
    """Return whether a gc has deleted anything since an operation, or is about to."""
    try:
        return any(
            operation.condemned for operation in stores.oplog.between(since, stores.oplog.newest())
        )
    except NotFoundError:  # pruned, so this is unknown
        return True


def _plan(
    stores: Stores,
    policies: Policies,
    *,
    grace: float,
    lock: AbstractContextManager[None],
    chosen: Collection[Digest] | None = None,
) -> GcPlan:
    """Decide what stays.

    lock: held while the repository is read. chosen: the only ones that expire, whatever the policy.
    """
    with stores.lock, lock, stores.live.lock:
        newest = stores.oplog.newest()
        stored = stores.catalog.live()
        stores.live.reconcile(newest, stored)
        judged = judge(stores, newest, policies, grace=grace, stored=stored)
        if chosen is not None:
            judged = _only(judged, chosen, is_cut=bool(stores.live.missing))
        verdicts, is_torn = judged.verdicts, judged.is_torn
        expiring = [verdict.id for verdict in verdicts if not verdict.kept]
        exclusive = stores.marks.exclusive(expiring)
        waiting = judged.waiting
        young_seconds = max(waiting.values(), default=0.0)
        with_waiting = stores.marks.exclusive([*expiring, *waiting])
        frees = np.zeros(len(expiring) + 1, np.int64)  # the last one is of objects without owner
        leftover_objects = leftover_bytes = young_objects = young_bytes = 0
        for part in stores.stock(grace=grace):
            sizes = np.array([item.size for item in part], np.int64)
            marks = marks_of(item.digest for item in part)
            owners = exclusive.owners_of(marks)
            np.add.at(frees, owners, sizes)
            young = np.array([item.young_seconds for item in part])
            is_unreached = ~stores.marks.are_reached(marks) & (not is_torn)
            is_leftover = is_unreached & (young == 0)
            is_new = is_unreached & (young > 0)
            young_seconds = max(young_seconds, young[is_new].max(initial=0))
            is_new |= (owners < 0) & (with_waiting.owners_of(marks) >= 0)
            leftover_objects += int(is_leftover.sum())
            leftover_bytes += int(sizes[is_leftover].sum())
            young_objects += int(is_new.sum())
            young_bytes += int(sizes[is_new].sum())
        temporaries = stores.storage.temporaries()
        chains = {
            name: stores.live.own(head, newest.claim_of(name))
            for name, head in newest.heads.items()
        }
        to_go = next_to_go((v for v in verdicts if v.kept), policies, chains)
    return GcPlan(
        sentences=tuple(policies.sentences(newest.heads)) if chosen is None else (CHOSEN,),
        verdicts=verdicts,
        frees=dict(zip(expiring, frees[:-1].tolist(), strict=True)),
        leftover_objects=leftover_objects,
        leftover_bytes=leftover_bytes,
        young_checkpoints=len(waiting),
        young_objects=young_objects,
        young_bytes=young_bytes,
        young_seconds=float(young_seconds) if waiting or young_objects else 0.0,
        next_to_go=to_go,
        temporary_bytes=sum(item.size for item in temporaries if item.is_left),
        warning=stores.warning(judged.notes),
        _execute=lambda plan: execute_plan(
            stores, plan, policies, grace=grace, is_torn=is_torn, notes=judged.notes
        ),
    )


def expire(stores: Stores, policies: Policies, *, grace: float) -> GcReport:
    """Expire what a policy does not keep. What this costs follows what changed since the last gc.

    Objects that interrupted commits left are not looked for.
    """
    with stores.lock, stores.storage.lock():
        finish_gc(stores)
        newest = stores.oplog.newest()
        with stores.live.lock:
            stores.live.update(newest)
            judged = judge(stores, newest, policies, grace=grace)
        stores.note_missing(newest)
        expiring = [verdict for verdict in judged.verdicts if not verdict.kept]
        left = remaining_of(stores, policies, expiring, seen=newest.seq)
        report = delete_remaining(stores, left)
    return replace(report, warning=stores.warning(judged.notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdicts on all live checkpoints, those that a ref reaches first.

    Attributes:
        verdicts: One for each.
        waiting: Those that stay for the grace time alone, with the seconds until it ends.
        notes: Sentences about what could not be judged.
        is_torn: True where manifests or operations are missing: what they refer to is unknown, and
            no object may be deleted but those of checkpoints that expire.
    """

    verdicts: tuple[Verdict, ...]
    waiting: Mapping[Digest, float]
    notes: tuple[str, ...]
    is_torn: bool


def judge(
    stores: Stores,
    newest: Operation,
    policies: Policies,
    *,
    grace: float,
    stored: Mapping[Digest, float] | None = None,
) -> Judged:
    """Judge all live checkpoints, and mark what they reach.

    Where the history is torn, a checkpoint that no ref reaches may be a part of it, so its pages
    have to be there too. Where a manifest is missing nothing expires for a day, as the missing
    checkpoint may need any object, and what no ref reaches stays: it may be behind that one.

    The caller holds `live.lock`, and has brought `stores.live` up to date.

    grace: the seconds for which something stays since an operation let it go. What no operation
    named stays for as long since it was stored, but for an hour at most.

    stored: when each was stored; listed here when it is needed and not given.
    """
    refuse_without_operations(newest, stores.oplog, stores.catalog)
    stores.check_refs(newest)
    live = stores.live
    stores.marks.follow(live.manifests)
    decision = decide(
        policies,
        heads=newest.heads,
        tags=newest.tags,
        reached=live.reached,
        own=lambda name, head: live.own(head, newest.claim_of(name)),
        leases=newest.leases,
        freed=stores.freed,
    )
    owned = decision.verdicts
    reached = {verdict.id for verdict in owned} | decision.unowned.keys()
    live.look_behind(reached)
    blocking = stores.blocking(newest)
    if blocking:
        owned = tuple(map(_kept, owned))
    waiting: dict[Digest, float] = {}

    def seconds_left(entry: LetGo) -> float:
        return (entry.time - stores.now()) / 1e6 + grace if grace else 0.0

    named = {entry.id: entry for entry in newest.let_go if entry.way != MISSING}
    for verdict in owned:
        entry = None if verdict.kept else named.get(verdict.id)
        if entry and (left := seconds_left(entry)) > 0:
            waiting[verdict.id] = left
    owned = tuple(
        replace(verdict, kept=True, reasons=(str(named[verdict.id]),))
        if verdict.id in waiting
        else verdict
        for verdict in owned
    )
    orphans = {id: live.manifests[id] for id in live.manifests.keys() - reached}
    unnamed = lost(
        orphans, reached=reached, newest=newest, oplog=stores.oplog, catalog=stores.catalog
    )
    let_go: list[Verdict] = []
    if orphans or decision.unowned:
        stored = stores.catalog.live() if stored is None else stored
        latest = stores.storage.now() - min(grace, COMMIT_SECONDS)
        entries = live.let_go(newest.let_go)
        rest = named.get(None)  # what there was no room for
        for id, manifest in {**orphans, **decision.unowned}.items():
            entry = entries.get(id, rest)
            left = seconds_left(entry) if entry else stored.get(id, latest) - latest
            verdict = _let_go(
                id,
                manifest,
                entry,
                is_cut=bool(live.missing),
                is_lost=id in unnamed,
                is_old=left <= 0,
                is_repeated=id in orphans
                and partial(_is_repeated, stores, newest, live.manifests[id]),
            )
            let_go.append(verdict)
            if left > 0 and not (live.missing or id in unnamed):
                waiting[id] = left
        let_go.sort(key=lambda verdict: (-verdict.manifest.created, verdict.id))
    verdicts = (*owned, *let_go)
    is_torn = bool(blocking or unnamed)
    for verdict in verdicts:
        if verdict.kept and (is_torn or verdict.id in reached):
            stores.marks.require(verdict.manifest)
    return Judged(verdicts=verdicts, waiting=waiting, notes=decision.notes, is_torn=is_torn)


def _only(judged: Judged, chosen: Collection[Digest], *, is_cut: bool) -> Judged:
    """Return the verdicts if only some checkpoints expire; nothing does in a torn history."""

    def decided(verdict: Verdict) -> Verdict:
        if verdict.id in chosen and verdict.names:
            raise ConflictError(
                f"Checkpoint {verdict.id.short} cannot expire: it is {', '.join(verdict.names)}. "
                "Delete the tag, or reset or delete the branch, and retry."
            )
        if verdict.id in chosen and not is_cut:
            return replace(verdict, kept=False, reasons=(BY_HAND,), is_let_go=False)
        reason = INCOMPLETE if is_cut else NOT_CHOSEN
        return replace(verdict, kept=True, reasons=verdict.names or (reason,), is_let_go=False)

    # Objects that nothing explains are left to a gc.
    return replace(judged, verdicts=tuple(map(decided, judged.verdicts)), is_torn=True)


def _kept(verdict: Verdict) -> Verdict:
    """Return the verdict on a checkpoint of a history of which a part is missing."""
    return verdict if verdict.kept else replace(verdict, kept=True, reasons=(INCOMPLETE,))


def _let_go(
    id: Digest,
    manifest: Manifest,
    entry: LetGo | None,
    *,
    is_cut: bool,
    is_lost: bool,
    is_old: bool,
    is_repeated: Literal[False] | Callable[[], bool],
) -> Verdict:
    """Return the verdict on a checkpoint of a deleted branch, or of a commit that lost a race.

    entry: what let it go, if an operation did.
    """
    if is_cut:
        reason = INCOMPLETE
    elif is_lost:
        reason = "the operations that named it are missing: make a branch at it, or delete that"
    elif entry and entry.id:
        reason = str(entry)
    elif not is_old:
        reason = NEW
    elif is_repeated and is_repeated():
        reason = REPEATED
    elif is_repeated:
        reason = UNREACHED
    else:
        reason = UNOWNED
    kept = is_cut or is_lost or not is_old
    return Verdict(
        id=id,
        manifest=manifest,
        branches=(),
        kept=kept,
        reasons=(reason,),
        is_let_go=True,
        is_reached=is_repeated is False,
    )


def _is_repeated(stores: Stores, newest: Operation, manifest: Manifest) -> bool:
    """Return whether its branch has the same commit again, made when this one lost a race.

    Both were made at the same moment, so that nothing older has to be looked at.
    """
    head = newest.heads.get(manifest.branch or "")
    chain = first_parents(head, stores.catalog.lookup) if head else iter(())
    since = takewhile(lambda item: item[1].created >= manifest.created, chain)
    return any(
        replace(other, parents=manifest.parents, elapsed=manifest.elapsed).encode()
        == manifest.encode()
        for _, other in islice(since, REPEATED_READS_MAX)
    )

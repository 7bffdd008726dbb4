"""Plan: which checkpoints stay and which expire, and what that frees. Nothing is changed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING

import numpy as np

from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.gc.execute import delete_remaining, execute_plan, finish_gc
from ckptstore.gc.marks import marks_of
from ckptstore.gc.remaining import REPEATED, UNREACHED, remaining_of
from ckptstore.history import first_parents
from ckptstore.retention import Verdict, decide
from ckptstore.store.lost import lost

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.gc.execute import GcReport
    from ckptstore.gc.stores import Stores
    from ckptstore.retention import Policy

REPEATED_READS_MAX = 1000
UNLOCKED_ATTEMPTS = 3
NEW = "it is new, and a commit may be about to use it"
INCOMPLETE = "a part of the history is missing, and may need it"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """A plan of a gc; nothing is done before `execute`.

    Attributes:
        policy: The policy that decided.
        verdicts: Every live checkpoint, newest first, kept or not, with every reason.
        frees: The bytes that each checkpoint to expire frees; what several of them share counts for
            the newest.
        leftover_objects: How many objects interrupted commits left behind.
        leftover_bytes: The bytes of these.
        young_checkpoints: How many checkpoints that no branch and no tag reaches are younger than
            the grace time. They stay, as a commit may be about to use them.
        young_objects: How many objects stay because only these reach them, or because nothing does
            and they are younger than the grace time themselves.
        young_bytes: The bytes of these.
        young_seconds: The time after which a gc can delete the last of them, from now.
        temporary_bytes: The bytes of files that killed processes left half written.
        warning: Why nothing can be deleted, and the way out, where a checkpoint of the history is
            missing; otherwise empty.
    """

    policy: Policy
    verdicts: tuple[Verdict, ...]
    frees: Mapping[Digest, int]
    leftover_objects: int
    leftover_bytes: int
    young_checkpoints: int
    young_objects: int
    young_bytes: int
    young_seconds: float
    temporary_bytes: int
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


def plan_gc(
    stores: Stores, policy: Policy, *, branches: Collection[str] | None, grace: float
) -> GcPlan:
    """Decide what stays.

    A plan only reads, and takes no lock, so that a reader cannot hold up the owner's gc. If another
    gc deletes what is being read, the plan is made again, and the last attempt takes the lock
    (ADR 0030).

    branches: those that the policy applies to; None: all. grace: seconds for which unreachable
    objects and checkpoints are left alone, as a commit may be making them.
    """
    attempt = partial(_plan, stores, policy, branches=branches, grace=grace)
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
    policy: Policy,
    *,
    branches: Collection[str] | None,
    grace: float,
    lock: AbstractContextManager[None],
) -> GcPlan:
    """Decide what stays. lock: held while the repository is read."""
    with stores.lock, lock, stores.live.lock:
        newest = stores.oplog.newest()
        stored = stores.catalog.live()
        stores.live.reconcile(newest, stored)
        verdicts, is_torn = judge(
            stores, newest, policy, branches=branches, grace=grace, stored=stored
        )
        expiring = [verdict.id for verdict in verdicts if not verdict.kept]
        exclusive = stores.marks.exclusive(expiring)
        waiting = {verdict.id: stored[verdict.id] for verdict in verdicts if NEW in verdict.reasons}
        young_seconds = max(waiting.values(), default=0.0) + grace - stores.storage.now()
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
    return GcPlan(
        policy=policy,
        verdicts=verdicts,
        frees=dict(zip(expiring, frees[:-1].tolist(), strict=True)),
        leftover_objects=leftover_objects,
        leftover_bytes=leftover_bytes,
        young_checkpoints=len(waiting),
        young_objects=young_objects,
        young_bytes=young_bytes,
        young_seconds=float(young_seconds) if waiting or young_objects else 0.0,
        temporary_bytes=sum(item.size for item in temporaries if item.is_left),
        warning=stores.warning(),
        _execute=lambda plan: execute_plan(stores, plan, grace=grace, is_torn=is_torn),
    )


def expire(
    stores: Stores, policy: Policy, *, branches: Collection[str] | None, grace: float
) -> GcReport:
    """Expire what a policy does not keep. What this costs follows what changed since the last gc.

    Objects that interrupted commits left are not looked for.
    """
    with stores.lock, stores.storage.lock():
        finish_gc(stores)
        newest = stores.oplog.newest()
        with stores.live.lock:
            stores.live.update(newest)
            verdicts, _ = judge(stores, newest, policy, branches=branches, grace=grace)
        expiring = [verdict for verdict in verdicts if not verdict.kept]
        return delete_remaining(stores, remaining_of(stores, policy, expiring, seen=newest.seq))


def judge(
    stores: Stores,
    newest: Operation,
    policy: Policy,
    *,
    branches: Collection[str] | None,
    grace: float,
    stored: Mapping[Digest, float] | None = None,
) -> tuple[tuple[Verdict, ...], bool]:
    """Return verdicts on all live checkpoints, those that a ref reaches first, and mark them.

    The second value is True where manifests or operations are missing: what they refer to is then
    unknown, and no object may be deleted but those of checkpoints that expire. Then a checkpoint
    that no ref reaches may be a part of the history, so its pages have to be there too. Where a
    manifest is missing nothing expires, as the missing checkpoint may need any object.

    The caller holds `live.lock`, and has brought `stores.live` up to date.

    stored: when each was stored; listed here when it is needed and not given.
    """
    stores.check_refs(newest)
    live = stores.live
    reachable = decide(
        policy, heads=newest.heads, tags=newest.tags, reached=live.reached, branches=branches
    )
    reached = {verdict.id for verdict in reachable}
    live.look_behind(reached)
    if live.missing:
        reachable = tuple(map(_kept, reachable))
    orphans = {id: live.manifests[id] for id in live.manifests.keys() - reached}
    unnamed = lost(
        orphans, reached=reached, newest=newest, oplog=stores.oplog, catalog=stores.catalog
    )
    unreachable: list[Verdict] = []
    if orphans:
        stored = stores.catalog.live() if stored is None else stored
        latest = stores.storage.now() - grace
        unreachable = [
            _unreachable(
                id,
                manifest,
                is_cut=bool(live.missing),
                is_lost=id in unnamed,
                is_old=stored.get(id, latest) <= latest,
                is_repeated=partial(_is_repeated, stores, newest, live.manifests[id]),
            )
            for id, manifest in orphans.items()
        ]
        unreachable.sort(key=lambda verdict: (-verdict.manifest.created, verdict.id))
    stores.marks.follow(live.manifests)
    is_torn = bool(live.missing or unnamed)
    for verdict in (*reachable, *unreachable) if is_torn else reachable:
        if verdict.kept:
            stores.marks.require(verdict.manifest)
    return (*reachable, *unreachable), is_torn


def _kept(verdict: Verdict) -> Verdict:
    """Return the verdict on a checkpoint of a history of which a part is missing."""
    return verdict if verdict.kept else replace(verdict, kept=True, reasons=(INCOMPLETE,))


def _unreachable(
    id: Digest,
    manifest: Manifest,
    *,
    is_cut: bool,
    is_lost: bool,
    is_old: bool,
    is_repeated: Callable[[], bool],
) -> Verdict:
    """Return the verdict on a checkpoint of a deleted branch, or of a commit that lost a race."""
    if is_cut:
        reason = INCOMPLETE
    elif is_lost:
        reason = "the operations that named it are missing: make a branch at it, or delete that"
    elif not is_old:
        reason = NEW
    elif is_repeated():
        reason = REPEATED
    else:
        reason = UNREACHED
    kept = is_cut or is_lost or not is_old
    return Verdict(id=id, manifest=manifest, branches=(), kept=kept, reasons=(reason,))


def _is_repeated(stores: Stores, newest: Operation, manifest: Manifest) -> bool:
    """Return whether its branch has the same commit again, made when this one lost a race.

    Both were made at the same moment, so that nothing older has to be looked at.
    """
    head = newest.heads.get(manifest.branch or "")
    chain = first_parents(head, stores.catalog.lookup) if head else iter(())
    since = takewhile(lambda item: item[1].created >= manifest.created, chain)
    return any(
        replace(other, parents=manifest.parents).encode() == manifest.encode()
        for _, other in islice(since, REPEATED_READS_MAX)
    )

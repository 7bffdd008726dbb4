"""Plan: which checkpoints stay and which expire, and what that frees. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from ckptstore.gc.execute import execute_plan
from ckptstore.gc.marks import Marks, PlanReach
from ckptstore.retention import Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.gc.execute import GcReport
    from ckptstore.gc.stores import Stores
    from ckptstore.retention import Policy


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
        """The bytes that would be freed."""
        return sum(self.frees.values()) + self.leftover_bytes

    def execute(self) -> GcReport:
        """Execute the plan.

        Commits made since planning are kept, and so is a checkpoint that was to expire but has a
        branch or tag by now.

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

    branches: those that the policy applies to; None: all. grace: seconds for which unreachable
    objects and checkpoints are left alone, as a commit may be making them.
    """
    with stores.storage.lock():  # no other gc deletes what is being read
        newest = stores.oplog.newest()
        live = stores.live(newest)
        is_cut = False

        @cache
        def lookup(id: Digest) -> Manifest | None:
            nonlocal is_cut
            manifest = stores.catalog.lookup(id)
            is_cut = is_cut or manifest is None
            return manifest

        reachable = decide(
            policy,
            heads=newest.heads,
            tags=newest.tags,
            lookup=lookup,
            is_expired=lambda id: id not in live,
            branches=branches,
        )
        named = {verdict.id for verdict in reachable}
        latest = stores.storage.now() - grace
        unreachable = [
            _unreachable(
                id,
                stores.catalog.manifest(id),
                is_cut=is_cut,
                is_old=live[id] <= latest,
            )
            for id in live.keys() - named
        ]
        unreachable.sort(key=lambda verdict: (-verdict.manifest.created, verdict.id))
        verdicts = (*reachable, *unreachable)
        stock = stores.stock(grace=grace)
        marks = Marks(stores.catalog)
        for verdict in verdicts:
            if verdict.kept:
                marks.add(verdict.manifest, must_be_whole=verdict.id in named)
        kept = set(marks.digests)
        freed = {
            verdict.id: marks.add(verdict.manifest, must_be_whole=False)
            for verdict in verdicts
            if not verdict.kept
        }
    reach = PlanReach(kept=kept, given_up=marks.digests - kept, unread=marks.unread)
    leftover = stock.sizes.keys() - marks.digests - stock.young
    return GcPlan(
        policy=policy,
        verdicts=verdicts,
        frees={
            id: sum(stock.sizes.get(digest, 0) for digest in digests)
            for id, digests in freed.items()
        },
        leftover_objects=len(leftover),
        leftover_bytes=sum(stock.sizes[digest] for digest in leftover),
        _execute=lambda plan: execute_plan(stores, plan, reach, grace=grace),
    )


def _unreachable(id: Digest, manifest: Manifest, *, is_cut: bool, is_old: bool) -> Verdict:
    """Return the verdict on a checkpoint of a deleted branch, or of a commit that lost a race."""
    if is_cut:
        reason = "a part of the history is missing, and it may be reached from there"
    elif is_old:
        reason = "no branch and no tag reaches it"
    else:
        reason = "it is new, and a commit may be about to use it"
    kept = is_cut or not is_old
    return Verdict(id=id, manifest=manifest, branches=(), kept=kept, reasons=(reason,))

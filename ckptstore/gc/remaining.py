"""Remaining: what one gc has yet to delete, and what has to be spared meanwhile."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.documents.operation import Condemned
from ckptstore.gc.marks import Marks
from ckptstore.history import ancestors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptstore.digest import Digest
    from ckptstore.gc.marks import PlanReach
    from ckptstore.gc.plan import GcPlan
    from ckptstore.gc.stores import Stores
    from ckptstore.store.catalog import Catalog

BATCH = 8192  # checkpoints, and objects, that one operation condemns at most
UNREACHABLE = "No branch and no tag reached it."


@dataclass(slots=True, kw_only=True)
class Remaining:
    """The checkpoints and objects that are left to delete.

    expiring: why each checkpoint expires, by its id. seen: the number of the newest operation that
    was looked at.
    """

    catalog: Catalog
    marks: Marks
    staying: set[Digest]
    expiring: dict[Digest, str]
    garbage: set[Digest]
    order: deque[Digest]
    sizes: Mapping[Digest, int]
    seen: int

    def spare(self, refs: Iterable[Digest]) -> None:
        """Keep what refs name now, and what they reach that was made since the sweep began."""
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

    def next_part(self, *, owner: str, since: int) -> Condemned | None:
        """Return what the next operation condemns; None when nothing is left.

        Checkpoints come first, so that none is live without its objects.
        """
        why = next(iter(self.expiring.values()), "")
        checkpoints = [id for id, reason in self.expiring.items() if reason == why][:BATCH]
        is_last = len(checkpoints) == len(self.expiring)
        waiting = (digest for digest in self.order if digest in self.garbage)
        digests = list(islice(waiting, BATCH)) if is_last else []
        if not checkpoints and not digests:
            return None
        return Condemned(
            checkpoints=tuple(checkpoints),
            digests=tuple(digests),
            why=why,
            owner=owner,
            since=since,
        )

    def take(self, condemned: Condemned) -> None:
        """Remove what has been condemned."""
        for id in condemned.checkpoints:
            del self.expiring[id]
        self.garbage.difference_update(condemned.digests)
        while self.order and self.order[0] not in self.garbage:
            self.order.popleft()


def find_remaining(stores: Stores, plan: GcPlan, reach: PlanReach, *, grace: float) -> Remaining:
    """Find what is garbage now; of checkpoints that stay, only those new to the plan are read."""
    newest = stores.oplog.newest()
    live = stores.live(newest).keys()
    reasons = {
        verdict.id: str(plan.policy) if verdict.branches else UNREACHABLE
        for verdict in plan.expired
        if verdict.id in live and verdict.id not in newest.refs.values()
    }
    staying = live - reasons.keys()
    marks = Marks(stores.catalog, reach)
    _mark_new(stores, marks, staying, newest.refs.values(), plan)
    stock = stores.stock(grace=grace)
    unreached = stock.sizes.keys() - marks.digests
    garbage = unreached - (stock.young - reach.given_up)
    return Remaining(
        catalog=stores.catalog,
        marks=marks,
        staying=staying,
        expiring=reasons,
        garbage=garbage,
        order=deque(sorted(garbage)),
        sizes=stock.sizes,
        seen=newest.seq,
    )


def _mark_new(
    stores: Stores, marks: Marks, staying: set[Digest], refs: Iterable[Digest], plan: GcPlan
) -> None:
    """Mark what checkpoints that stay reach, except those that the plan has marked."""
    known = {verdict.id for verdict in plan.kept}
    named = ancestors(refs, lambda id: None if id in known else stores.catalog.lookup(id))
    for id, manifest in named:
        if id in staying:
            marks.add(manifest, must_be_whole=True)
            known.add(id)
    for id in sorted(staying - known):
        marks.add(stores.catalog.manifest(id), must_be_whole=False)

"""Remaining: what one gc has yet to delete, and what has to be spared meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents.expiry import WHY_LENGTH_MAX
from ckptstore.documents.operation import Condemned
from ckptstore.errors import CorruptError, shortened
from ckptstore.gc.judge import (
    BY_HAND,
    REPEATED,
    UNOWNED,
    UNREACHED,
    judge_again,
    mark,
    stays,
)
from ckptstore.gc.marks import marks_of
from ckptstore.store.reach import searched, walk
from ckptstore.threads import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.errors import CkptStoreError
    from ckptstore.gc.judge import Judged, RulesAt
    from ckptstore.gc.marks import Exclusive
    from ckptstore.gc.plan import GcPlan
    from ckptstore.gc.stores import Stores
    from ckptstore.retention import Policies, Verdict

BATCH = 8192  # objects that one operation condemns at most
# Checkpoints that one operation condemns at most: on a full disk the reserve has room for their
# names in history/, 256 * 80 bytes, even if each block of the folder is only half full.
BATCH_CHECKPOINTS = 256
LEAST_OBJECTS = 64  # condemned on a full disk, where each of them frees a block and an inode
LEAST_GROWTH = 8
LEAST_CHECKPOINTS = (1, 2, 4, 8, 16, 32, 64)
UNREACHABLE = "No branch and no tag reached it."  # in an expiry
GONE = "Its branch was gone."  # in an expiry


@dataclass(slots=True, kw_only=True)
class Remaining:
    """The checkpoints and objects that are left to delete, and those that were taken to be.

    rules_at: the rules of the gc. expiring: the reason of each expiring checkpoint, by id.
    given_up: their verdicts. garbage: unreachable objects with their sizes, filled as they are
    found. part: the objects to condemn next. spared: objects that are reached again, or were
    condemned out of turn. seen: the newest operation that was read. notes: warnings.
    has_little_room: whether the disk was full. least_objects: how many objects the next least part
    condemns.
    """

    stores: Stores
    rules_at: RulesAt
    exclusive: Exclusive
    staying: set[Digest]
    expiring: dict[Digest, str]
    garbage: Iterator[tuple[Digest, int]]
    seen: Operation
    given_up: Mapping[Digest, Verdict]
    notes: tuple[str, ...]
    part: dict[Digest, int] = field(default_factory=dict)
    spared: set[str] = field(default_factory=set)
    expired: list[Digest] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    has_little_room: bool = False
    least_objects: int = LEAST_OBJECTS

    def spare(self, refs: Iterable[Digest]) -> None:
        """Keep what refs name now, and what they reach unless it expires by the policy."""
        catalog = self.stores.catalog
        waiting = list(refs)
        while waiting:
            id = waiting.pop()
            was_expiring = self.expiring.pop(id, None) is not None
            if id in self.staying or (not was_expiring and catalog.is_expired(id)):
                continue
            manifest = catalog.manifest(id)
            self.staying.add(id)
            self._spare_objects(manifest)
            waiting += (
                parent
                for parent in manifest.parents
                if parent not in self.expiring or not self.given_up[parent].is_reached
            )

    def judge_again(self, newest: Operation) -> None:
        """Keep every checkpoint that anything keeps as of the newest operation."""
        live = self.stores.live
        with live.lock:
            live.update(newest)
            judged = judge_again(self.stores, newest, self.rules_at)
        self.spare(
            now.id
            for now in judged.verdicts
            if now.id in self.expiring and stays(now, self.given_up[now.id])
        )

    def _spare_objects(self, manifest: Manifest) -> None:
        """Keep the objects of a checkpoint. Pages that others share list nothing that would go."""
        reached: set[str] = set(manifest.documents())
        pages = walk(
            [manifest],
            searched(self.stores.catalog),
            wanted=lambda page: (
                page in self.exclusive.pages or not self.stores.marks.has_read(page)
            ),
        )
        for _, listed in pages:
            reached |= listed
        self.spared |= reached
        self.part = {digest: size for digest, size in self.part.items() if digest not in reached}

    def next_part(self, *, owner: str, since: int) -> Condemned | None:
        """Return what the next operation condemns; None when nothing is left.

        Checkpoints come first, so that none is live without its objects.
        """
        why = next(iter(self.expiring.values()), "")
        checkpoints = [id for id, reason in self.expiring.items() if reason == why]
        checkpoints = checkpoints[:BATCH_CHECKPOINTS]
        is_last = len(checkpoints) == len(self.expiring)
        while is_last and len(self.part) < BATCH and (found := next(self.garbage, None)):
            digest, size = found
            if digest not in self.spared:
                self.part[digest] = size
        if not checkpoints and not self.part:
            return None
        return Condemned(
            checkpoints=tuple(checkpoints),
            digests=tuple(self.part),
            why=why,
            owner=owner,
            since=since,
        )

    def least_part(self, *, owner: str, since: int) -> Condemned | None:
        """Return a small part that frees more than its operation takes; None as `next_part`.

        These are the oldest checkpoints, as few as reach some dozens of objects that no others do,
        and these objects. Each call condemns more objects than the one before.
        """
        self.has_little_room = True
        why = next(iter(self.expiring.values()), "")
        oldest = [id for id, reason in self.expiring.items() if reason == why]
        oldest.sort(key=lambda id: (self.stores.catalog.manifest(id).created, id))
        for count in LEAST_CHECKPOINTS:
            objects = self._only_reached_by(oldest[:count]) if oldest else self.part
            if len(objects) >= LEAST_OBJECTS or count >= len(oldest):
                break
        if not objects:
            return self.next_part(owner=owner, since=since)
        chosen = dict(islice(objects.items(), self.least_objects))
        self.least_objects *= LEAST_GROWTH
        self.part |= chosen
        return Condemned(
            checkpoints=tuple(oldest[:count]),
            digests=tuple(chosen),
            why=why,
            owner=owner,
            since=since,
        )

    def _only_reached_by(self, ids: Sequence[Digest]) -> dict[Digest, int]:
        """Return the objects, with their sizes, that these reach and no other live checkpoint."""
        marks = self.stores.marks
        exclusive = marks.exclusive([*self.expired, *ids])
        manifests = {id: marks.manifests[id] for id in ids}
        return {
            digest: size
            for digest, size in _exclusive_garbage(self.stores, exclusive, manifests)
            if digest not in self.spared
        }

    def take(self, condemned: Condemned) -> None:
        """Remove what has been condemned."""
        for id in condemned.checkpoints:
            del self.expiring[id]
        self.expired += condemned.checkpoints
        self.objects += len(condemned.digests)
        self.bytes += sum(self.part.pop(digest) for digest in condemned.digests)
        if self.has_little_room:  # they may be listed again
            self.spared.update(condemned.digests)


def find_remaining(stores: Stores, plan: GcPlan, rules_at: RulesAt) -> Remaining:
    """Find what is garbage now, by listing all objects.

    All checkpoints are judged again. Those expire that the plan gives up and nothing keeps now.
    """
    newest = stores.oplog.newest()
    with stores.live.lock:
        stored = stores.catalog.live()
        stores.live.reconcile(newest, stored)
        judged = judge_again(stores, newest, rules_at, stored=stored)
        judged = _shrunk(judged, plan)
        mark(stores, judged)
    garbage = partial(_listed_garbage, stores, grace=judged.rules.grace, is_torn=judged.is_torn)
    return _remaining(stores, rules_at, judged, seen=newest, garbage_of=garbage)


def _shrunk(judged: Judged, plan: GcPlan) -> Judged:
    """Return the verdicts of now; a checkpoint expires only if the plan gives it up too."""
    given_up = {verdict.id: verdict for verdict in plan.expired}

    def decided(now: Verdict) -> Verdict:
        before = given_up.get(now.id)
        return replace(now, kept=True) if before is None or stays(now, before) else now

    return replace(judged, verdicts=tuple(map(decided, judged.verdicts)))


def remaining_of(
    stores: Stores, rules_at: RulesAt, judged: Judged, *, seen: Operation
) -> Remaining:
    """Return what expires by these verdicts, with its objects; no listing is needed for these."""
    manifests = {verdict.id: verdict.manifest for verdict in judged.expired}
    garbage = partial(_exclusive_garbage, stores, manifests=manifests)
    return _remaining(stores, rules_at, judged, seen=seen, garbage_of=garbage)


def _remaining(
    stores: Stores,
    rules_at: RulesAt,
    judged: Judged,
    *,
    seen: Operation,
    garbage_of: Callable[[Exclusive], Iterator[tuple[Digest, int]]],
) -> Remaining:
    expiring = judged.expired
    exclusive = stores.marks.exclusive([verdict.id for verdict in expiring])
    return Remaining(
        stores=stores,
        rules_at=rules_at,
        exclusive=exclusive,
        staying=stores.marks.manifests.keys() - {verdict.id for verdict in expiring},
        expiring=reasons_of(stores, judged.rules.policies, expiring),
        garbage=garbage_of(exclusive),
        seen=seen,
        given_up={verdict.id: verdict for verdict in expiring},
        notes=judged.notes,
    )


def reasons_of(
    stores: Stores, policies: Policies, verdicts: Iterable[Verdict]
) -> dict[Digest, str]:
    """Return why each checkpoint expires, as its expiry will record it."""
    recorded = {UNREACHED: UNREACHABLE, UNOWNED: GONE, REPEATED: REPEATED.text}
    reasons = {
        verdict.id: recorded.get(verdict.reasons[0]) or _sentence(str(verdict.reasons[0]))
        if verdict.is_let_go
        else shortened(str(policies.of_branch(verdict.branches[0])), WHY_LENGTH_MAX)
        for verdict in verdicts
        if BY_HAND not in verdict.reasons
    }
    reasons |= {verdict.id: BY_HAND.text for verdict in verdicts if BY_HAND in verdict.reasons}
    for manifest in stores.live.manifests.values() if REPEATED.text in reasons.values() else ():
        for parent in manifest.parents:
            if reasons.get(parent) == REPEATED.text:  # with a child it is a part of the history
                reasons[parent] = UNREACHABLE
    return reasons


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."


def _listed_garbage(
    stores: Stores, exclusive: Exclusive, *, grace: float, is_torn: bool
) -> Iterator[tuple[Digest, int]]:
    """Yield the objects that no staying checkpoint reaches, except young leftovers."""
    for part in stores.stock(grace=grace):
        marks = marks_of(item.digest for item in part)
        is_exclusive = exclusive.owners_of(marks) >= 0
        is_reached = stores.marks.are_reached(marks)
        for item, is_given_up, is_used in zip(
            part, is_exclusive.tolist(), is_reached.tolist(), strict=True
        ):
            if is_given_up or not (is_used or item.young_seconds or is_torn):
                yield item.digest, item.size


def _exclusive_garbage(
    stores: Stores, exclusive: Exclusive, manifests: Mapping[Digest, Manifest]
) -> Iterator[tuple[Digest, int]]:
    """Yield the objects that only these checkpoints reach."""

    def skip(page: Digest, error: CkptStoreError) -> None:  # noqa: ARG001
        if not isinstance(error, CorruptError):
            raise error

    named: dict[Digest, None] = {}
    unread = set(exclusive.pages)
    for manifest in manifests.values():
        named.update(dict.fromkeys(sorted(manifest.documents())))
    pages = walk(
        manifests.values(), searched(stores.catalog), wanted=unread.__contains__, failed=skip
    )
    for page, listed in pages:
        unread.discard(page)
        named.update(dict.fromkeys(map(Digest, sorted(listed))))
    owners = exclusive.owners_of(marks_of(named))
    digests = [digest for digest, owner in zip(named, owners.tolist(), strict=True) if owner >= 0]
    sizes = ahead(
        (partial(stores.objects.size, digest) for digest in digests),
        threads=stores.catalog.threads,
    )
    found = zip(digests, sizes, strict=True)
    return ((digest, size) for digest, size in found if size is not None)

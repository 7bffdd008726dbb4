"""Plan: which checkpoints stay and which expire, and what that frees. Nothing is changed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ckptstore.errors import ConflictError, CorruptError, NotFoundError
from ckptstore.gc.execute import delete_remaining, execute_plan
from ckptstore.gc.finish import alone, begin, is_beside_gc, looks
from ckptstore.gc.judge import Rules, judge, mark
from ckptstore.gc.marks import marks_of
from ckptstore.gc.remaining import remaining_of
from ckptstore.retention import Policies, next_to_go

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    from ckptstore.digest import Digest
    from ckptstore.gc.execute import GcReport
    from ckptstore.gc.judge import Judged, RulesAt
    from ckptstore.gc.ownership import Ownership
    from ckptstore.gc.stores import Stores
    from ckptstore.retention import Verdict

Result = TypeVar("Result")

UNLOCKED_ATTEMPTS = 3
FAR_ATTEMPTS = 8
CHOSEN = "Expire the chosen checkpoints, and keep everything else."


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """A plan of a gc; nothing is done before `execute`.

    Attributes:
        sentences: The policies: a sentence for that of all branches, and one for each branch with a
            policy of its own.
        metrics: The metrics that the policies use.
        verdicts: Every live checkpoint, newest first, kept or not, with every reason.
        frees: The bytes that each checkpoint to expire frees; what several of them share counts for
            the newest.
        leftover_objects: How many objects interrupted commits left behind.
        leftover_bytes: The bytes of these.
        young_checkpoints: Number of checkpoints that stay only for the grace time: they lost their
            branch or tag, or nothing reaches them yet and a commit may be about to use them.
        young_objects: How many objects stay because only these reach them, or because nothing does
            and they are younger than the grace time themselves.
        young_bytes: The bytes of these.
        young_seconds: The time after which a gc can delete the last of them, from now.
        temporary_bytes: The bytes of files that killed processes left half written.
        warning: Why nothing can be deleted, and the way out, where a checkpoint of the history is
            missing, a policy with a metric that no checkpoint has, or a limit of bytes that cannot
            be met. Usually empty.
    """

    sentences: tuple[str, ...]
    metrics: frozenset[str]
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
    def next_to_go(self) -> tuple[Digest, ...]:
        """Checkpoints that stay now, and expire when the next one of their branch comes."""
        return tuple(verdict.id for verdict in self.verdicts if verdict.is_next_to_go)

    @property
    def bytes(self) -> int:
        """The bytes that would be freed."""
        return sum(self.frees.values()) + self.leftover_bytes + self.temporary_bytes

    def execute(self) -> GcReport:
        """Execute the plan.

        Commits made since planning are kept. Checkpoints that were to expire are judged again, and
        stay if anything keeps them now, such as a tag, a branch started from one, or a note that
        makes one the best. No checkpoint expires that the plan keeps.

        Returns:
            The result, as measured.

        Raises:
            CorruptError: A page of a checkpoint that stays cannot be read; nothing was deleted that
                such a checkpoint might need.
            ConflictError: On an object store: another gc makes no progress, or took over this one.
            StorageError: The storage failed. Repeat the gc; any process that meets what is left of
                this one finishes it.
        """
        return self._execute(self)


def plan_gc(stores: Stores, rules_at: RulesAt) -> GcPlan:
    """Decide what stays.

    A plan only reads, and takes no lock, so that a reader cannot hold up the owner's gc. If another
    gc deletes what is being read, the plan is made again, and the last attempt takes the lock
    (ADR 0030).
    """
    return _beside_gc(stores, partial(_plan, stores, rules_at))


def verdicts(stores: Stores, rules_at: RulesAt) -> tuple[Verdict, ...]:
    """Return the verdicts of a gc on all live checkpoints, without the bytes that it frees."""

    def attempt(lock: AbstractContextManager[None]) -> tuple[Verdict, ...]:
        with stores.lock, lock, stores.live.lock:
            return _judge_newest(stores, rules_at).verdicts

    return _beside_gc(stores, attempt)


def plan_expiry(stores: Stores, ids: Collection[Digest]) -> GcPlan:
    """Plan to expire some live checkpoints, and nothing else.

    Raises:
        ConflictError: A branch, tag or lease names one of them, or a branch was started from it.
    """
    rules = Rules(policies=Policies(), grace=0.0, chosen=ids)
    plan = _beside_gc(stores, partial(_plan, stores, lambda newest: rules))
    for verdict in plan.kept:
        if verdict.id in ids and verdict.names:
            names = ", ".join(map(str, verdict.names))
            raise ConflictError(
                f"Checkpoint {verdict.id.short} cannot expire: {names}. "
                "Delete the tag, or reset or delete the branch, and retry."
            )
    return plan


def _beside_gc(stores: Stores, attempt: Callable[..., Result]) -> Result:
    """Plan without the lock, and once more with it if another gc interferes.

    Where the lock does not keep that away, wait between attempts.
    """
    is_far = bool(stores.storage.lease_seconds)
    for _ in islice(looks(), FAR_ATTEMPTS) if is_far else range(UNLOCKED_ATTEMPTS):
        since = stores.oplog.newest().seq
        try:
            return attempt(lock=nullcontext())
        except (CorruptError, NotFoundError):
            if not is_beside_gc(stores, since):
                raise
    return attempt(lock=stores.storage.lock())


def _judge_newest(stores: Stores, rules_at: RulesAt) -> Judged:
    """Judge by the newest operation and a listing. The caller holds `live.lock`."""
    newest = stores.oplog.newest()
    stored = stores.catalog.live()
    stores.live.reconcile(newest, stored)
    judged = judge(stores, newest, rules_at(newest), stored=stored)
    kept = (verdict for verdict in judged.verdicts if verdict.kept)
    going = set(next_to_go(kept, judged.rules.policies, judged.chains))
    verdicts = (replace(verdict, is_next_to_go=verdict.id in going) for verdict in judged.verdicts)
    return replace(judged, verdicts=tuple(verdicts))


def _plan(stores: Stores, rules_at: RulesAt, *, lock: AbstractContextManager[None]) -> GcPlan:
    """Decide what stays. lock: held while the repository is read."""
    with stores.lock, lock, stores.live.lock:
        judged = _judge_newest(stores, rules_at)
        rules, chains = judged.rules, judged.chains
        mark(stores, judged)
        verdicts, is_torn = judged.verdicts, judged.is_torn
        expiring = [verdict.id for verdict in judged.expired]
        exclusive = stores.marks.exclusive(expiring)
        waiting = judged.waiting
        young_seconds = max(waiting.values(), default=0.0)
        with_waiting = stores.marks.exclusive([*expiring, *waiting])
        frees = np.zeros(len(expiring) + 1, np.int64)  # the last one is of objects without owner
        leftover_objects = leftover_bytes = young_objects = young_bytes = 0
        for part in stores.stock(grace=rules.grace):
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
        sentences=(tuple(rules.policies.sentences(chains)) if rules.chosen is None else (CHOSEN,)),
        metrics=rules.policies.metrics(chains),
        verdicts=verdicts,
        frees=dict(zip(expiring, frees[:-1].tolist(), strict=True)),
        leftover_objects=leftover_objects,
        leftover_bytes=leftover_bytes,
        young_checkpoints=len(waiting),
        young_objects=young_objects,
        young_bytes=young_bytes,
        young_seconds=float(young_seconds) if waiting or young_objects else 0.0,
        temporary_bytes=sum(item.size for item in temporaries if item.is_left),
        warning=stores.warning(judged.notes),
        _execute=lambda plan: execute_plan(stores, plan, rules_at),
    )


def expire(stores: Stores, rules_at: RulesAt) -> GcReport:
    """Expire what a policy does not keep. What this costs follows what changed since the last gc.

    Objects that interrupted commits left are not looked for.
    """

    def run(ownership: Ownership) -> GcReport:
        begin(stores)
        newest = stores.oplog.newest()
        with stores.live.lock:
            stores.live.update(newest)
            judged = judge(stores, newest, rules_at(newest))
            mark(stores, judged)
        stores.note_missing(newest)
        left = remaining_of(stores, rules_at, judged, seen=newest)
        return delete_remaining(stores, left, ownership)

    return alone(stores, run)

"""Judge: which checkpoints stay as of an operation, and which expire. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, TypeAlias

from ckptstore.documents.let_go import MISSING
from ckptstore.history import first_parents
from ckptstore.retention import Reason, Verdict, decide
from ckptstore.store.condemned import commit_seconds
from ckptstore.store.lost import lost, refuse_without_operations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.let_go import LetGo
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.gc.stores import Stores
    from ckptstore.history import OwnChain
    from ckptstore.retention import Policies

REPEATED_READS_MAX = 1000
UNREACHED = Reason(kind="unreached", text="no branch or tag reaches it")
UNOWNED = Reason(kind="unowned", text="its branch is gone")
BY_HAND = Reason(kind="by_hand", text="expired by hand")
REPEATED = Reason(kind="repeated", text="its commit lost a race and was repeated on the branch")
NEW = Reason(kind="new", text="it is new, and a commit may be about to use it")
INCOMPLETE = Reason(kind="incomplete", text="a part of the history is missing, and may need it")
LOST = Reason(
    kind="lost",
    text="the operations that named it are missing; to give it up, delete a branch at it",
)
NOT_CHOSEN = Reason(kind="not_chosen", text="it was not chosen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one gc.

    Attributes:
        policies: The policy of each branch.
        grace: Seconds that a checkpoint stays after an operation took its name away. A checkpoint
            that no operation named stays as long after it was stored, but an hour at most, or a
            day on an object store.
        chosen: The only checkpoints that expire, whatever the policies. None: the policies decide.
    """

    policies: Policies
    grace: float
    chosen: Collection[Digest] | None = None


RulesAt: TypeAlias = "Callable[[Operation], Rules]"  # as saved in the repository at that operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdicts on all live checkpoints, those that a ref reaches first.

    Attributes:
        rules: The rules that gave the verdicts.
        chains: The checkpoints of each branch, by its name.
        verdicts: One for each checkpoint.
        waiting: Checkpoints that stay only for the grace time, with the seconds until it ends.
        notes: Warnings, such as a metric that no checkpoint has.
        is_torn: True if manifests or operations are missing. Their references are unknown, so only
            objects of expiring checkpoints may be deleted.
    """

    rules: Rules
    chains: Mapping[str, OwnChain]
    verdicts: tuple[Verdict, ...]
    waiting: Mapping[Digest, float]
    notes: tuple[str, ...]
    is_torn: bool

    @property
    def expired(self) -> tuple[Verdict, ...]:
        """The verdicts on those that expire."""
        return tuple(verdict for verdict in self.verdicts if not verdict.kept)


def judge(
    stores: Stores,
    newest: Operation,
    rules: Rules,
    *,
    stored: Mapping[Digest, float] | None = None,
) -> Judged:
    """Judge all live checkpoints.

    If a manifest is missing, nothing expires for a day, as the missing checkpoint may need any
    object. Unreachable checkpoints stay as well: they may be its ancestors.

    The caller holds `live.lock`, and has brought `stores.live` up to date.

    stored: when each checkpoint was stored; None lists them when it is needed.
    """
    refuse_without_operations(newest, stores.oplog, stores.catalog)
    stores.check_refs(newest)
    live, grace = stores.live, rules.grace
    decision = decide(
        rules.policies,
        heads=newest.heads,
        tags=newest.tags,
        reached=live.reached,
        own=lambda name, head: live.own(head, newest.claim_of(name)),
        leases=newest.leases,
        resumed=newest.resumed,
        mirrors={
            name: (entry.place, live.before([entry.id]) or () if entry.id else ())
            for name, entry in newest.mirrored.items()
        },
        freed=stores.freed,
    )
    owned = decision.verdicts
    reached = {verdict.id for verdict in owned} | decision.unowned.keys()
    live.look_behind(reached)
    blocking = stores.blocking(newest)
    if blocking:
        owned = tuple(map(_kept, owned))

    def seconds_left(entry: LetGo) -> float:
        return (entry.time - stores.now()) / 1e6 + grace if grace else 0.0

    named = {entry.id: entry for entry in newest.let_go if entry.way != MISSING}
    waiting = {
        verdict.id: left
        for verdict in owned
        if not verdict.kept
        and (entry := named.get(verdict.id))
        and (left := seconds_left(entry)) > 0
    }
    owned = tuple(
        replace(verdict, kept=True, reasons=(_taken(named[verdict.id]),))
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
        latest = stores.storage.now() - min(grace, commit_seconds(stores.storage))
        entries = live.let_go(newest.let_go)
        rest = named.get(None)  # the entry for all that did not fit
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
                is_reached=id not in orphans,
                is_repeated=partial(_is_repeated, stores, newest, manifest),
            )
            let_go.append(verdict)
            if left > 0 and not (live.missing or id in unnamed):
                waiting[id] = left
        let_go.sort(key=lambda verdict: (-verdict.manifest.created, verdict.id))
    judged = Judged(
        rules=rules,
        chains=decision.chains,
        verdicts=(*owned, *let_go),
        waiting=waiting,
        notes=decision.notes,
        is_torn=bool(blocking or unnamed),
    )
    return (
        judged if rules.chosen is None else _only(judged, rules.chosen, is_cut=bool(live.missing))
    )


def judge_again(
    stores: Stores,
    newest: Operation,
    rules_at: RulesAt,
    *,
    stored: Mapping[Digest, float] | None = None,
) -> Judged:
    """Judge by the rules as of the newest operation, while a gc is running.

    A policy accepted when the gc began is not refused now: all checkpoints with its metric may have
    expired meanwhile.
    """
    rules = rules_at(newest)
    rules = replace(rules, policies=replace(rules.policies, is_given=False))
    return judge(stores, newest, rules, stored=stored)


def stays(now: Verdict, before: Verdict) -> bool:
    """Return whether a checkpoint that was to expire is kept now.

    If it belonged to no branch, or nothing reached it, it is kept if that has changed.
    """
    return (
        now.kept
        or (before.is_let_go and not now.is_let_go)
        or (now.is_reached and not before.is_reached)
    )


def mark(stores: Stores, judged: Judged) -> None:
    """Mark the objects that all live checkpoints reach. A kept checkpoint needs all its pages.

    In a torn history an unreachable checkpoint may be a part of it, so it needs its pages too. The
    caller holds `live.lock`.
    """
    stores.marks.follow(stores.live.manifests)
    for verdict in judged.verdicts:
        if verdict.kept and (judged.is_torn or verdict.is_reached):
            stores.marks.require(verdict.manifest)


def _only(judged: Judged, chosen: Collection[Digest], *, is_cut: bool) -> Judged:
    """Return the verdicts if only the chosen checkpoints expire; in a torn history none does."""

    def decided(verdict: Verdict) -> Verdict:
        if verdict.id in chosen and not verdict.names and not is_cut:
            return replace(verdict, kept=False, reasons=(BY_HAND,), is_let_go=False)
        reason = INCOMPLETE if is_cut else NOT_CHOSEN
        return replace(verdict, kept=True, reasons=verdict.names or (reason,), is_let_go=False)

    # Objects that no operation accounts for are left to a gc.
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
    is_reached: bool,
    is_repeated: Callable[[], bool],
) -> Verdict:
    """Return the verdict on a checkpoint of a deleted branch, or of a commit that lost a race.

    entry: the entry of the operation that took its name away, if any.
    """
    if is_cut:
        reason = INCOMPLETE
    elif is_lost:
        reason = LOST
    elif entry and entry.id:
        reason = _taken(entry)
    elif not is_old:
        reason = NEW
    elif is_reached:
        reason = UNOWNED
    else:
        reason = REPEATED if is_repeated() else UNREACHED
    kept = is_cut or is_lost or not is_old
    return Verdict(
        id=id,
        manifest=manifest,
        branches=(),
        kept=kept,
        reasons=(reason,),
        is_let_go=True,
        is_reached=is_reached,
    )


def _taken(entry: LetGo) -> Reason:
    """Return the reason of a checkpoint whose name an operation took away."""
    kind = entry.way.partition(" ")[0]
    return Reason(
        kind="let_go",
        text=str(entry),
        branch=entry.name if kind == "branch" else None,
        tag=entry.name if kind == "tag" else None,
    )


def _is_repeated(stores: Stores, newest: Operation, manifest: Manifest) -> bool:
    """Return whether the branch has the repeated commit of one that lost a race.

    Both have the same time, so older checkpoints need not be searched.
    """
    head = newest.heads.get(manifest.branch or "")
    chain = first_parents(head, stores.catalog.lookup) if head else iter(())
    since = takewhile(lambda item: item[1].created >= manifest.created, chain)
    return any(
        replace(other, parents=manifest.parents, elapsed=manifest.elapsed).encode()
        == manifest.encode()
        for _, other in islice(since, REPEATED_READS_MAX)
    )

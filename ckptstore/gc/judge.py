"""Judge: which checkpoints stay as of an operation, and which expire. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, TypeAlias

from ckptstore.documents.let_go import MISSING
from ckptstore.history import first_parents
from ckptstore.retention import Verdict, decide
from ckptstore.store.condemned import COMMIT_SECONDS
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
UNREACHED = "no branch and no tag reaches it"
UNOWNED = "its branch is gone"
BY_HAND = "expired by hand"
REPEATED = "its commit lost a race, and its branch has the same again"
NEW = "it is new, and a commit may be about to use it"
INCOMPLETE = "a part of the history is missing, and may need it"
NOT_CHOSEN = "it was not chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one gc.

    Attributes:
        policies: The policy of each branch.
        grace: The seconds for which something stays since an operation let it go. What no operation
            named stays for as long since it was stored, but for an hour at most.
        chosen: The only checkpoints that expire, whatever the policies; None: these decide.
    """

    policies: Policies
    grace: float
    chosen: Collection[Digest] | None = None


RulesAt: TypeAlias = "Callable[[Operation], Rules]"  # as saved in the repository at that operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdicts on all live checkpoints, those that a ref reaches first.

    Attributes:
        rules: Those by which they were judged.
        chains: The checkpoints of each branch, by its name.
        verdicts: One for each.
        waiting: Those that stay for the grace time alone, with the seconds until it ends.
        notes: Sentences about what could not be judged.
        is_torn: True where manifests or operations are missing: what they refer to is unknown, and
            no object may be deleted but those of checkpoints that expire.
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

    Where a manifest is missing nothing expires for a day, as the missing checkpoint may need any
    object, and what no ref reaches stays: it may be behind that one.

    The caller holds `live.lock`, and has brought `stores.live` up to date.

    stored: when each was stored; listed here when it is needed and not given.
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
    """Judge by the rules as of the newest operation, while a gc that began before is running.

    A policy that was accepted then is not refused now, when what had its metric may have expired.
    """
    rules = rules_at(newest)
    rules = replace(rules, policies=replace(rules.policies, is_given=False))
    return judge(stores, newest, rules, stored=stored)


def stays(now: Verdict, before: Verdict) -> bool:
    """Return whether a checkpoint that was given up before stays by now.

    One that belonged to no branch, or that nothing reached, does if that has changed.
    """
    return (
        now.kept
        or (before.is_let_go and not now.is_let_go)
        or (now.is_reached and not before.is_reached)
    )


def mark(stores: Stores, judged: Judged) -> None:
    """Mark what all live checkpoints reach. The pages of those that stay have to be there.

    Where the history is torn, a checkpoint that no ref reaches may be a part of it, so its pages
    have to be there too. The caller holds `live.lock`.
    """
    stores.marks.follow(stores.live.manifests)
    for verdict in judged.verdicts:
        if verdict.kept and (judged.is_torn or verdict.is_reached):
            stores.marks.require(verdict.manifest)


def _only(judged: Judged, chosen: Collection[Digest], *, is_cut: bool) -> Judged:
    """Return the verdicts if only some checkpoints expire; nothing does in a torn history."""

    def decided(verdict: Verdict) -> Verdict:
        if verdict.id in chosen and not verdict.names and not is_cut:
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
    is_reached: bool,
    is_repeated: Callable[[], bool],
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

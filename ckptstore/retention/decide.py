"""Decide: which of the live checkpoints stay, each with every reason.

Each branch is judged by its own chain, the checkpoints that were committed on it, and by its own
policy. Heads of branches and tagged checkpoints always stay, and so do the seeds of branches, the
checkpoints that they were started from, unless that is turned off.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.errors import InvalidInputError, shown
from ckptstore.metric_names import known_names
from ckptstore.retention.max_bytes import MaxBytes, over_limit
from ckptstore.retention.policy import ALWAYS, ANY, KeepAll
from ckptstore.retention.reason import Reason
from ckptstore.times import to_the_minute, utc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from ckptstore.documents.manifest import Manifest
    from ckptstore.history import OwnChain
    from ckptstore.retention.policy import Chain, Choice, Policy
    from ckptstore.retention.saved import Policies

    Reached = Callable[[Iterable[Digest]], Iterable[tuple[Digest, Manifest]]]
    Freed = Callable[[Sequence[Digest]], Sequence[int]]
    MirroredTo = tuple[str, Collection[Digest]]

NOTHING = Reason(kind="nothing", text="nothing keeps it")
UNMET = (
    "The checkpoints that always stay take more than the limit of {}: heads, tags, seeds, the "
    "newest and the best one. Raise the limit, or delete tags."
)
UNMIRRORED_MAX = 10  # of a branch that stay because they are not in its mirror yet
KEEPERS_MAX = 20  # branches whose history is searched one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on a checkpoint: whether it stays, with every reason.

    Attributes:
        id: The checkpoint.
        manifest: Its manifest.
        branches: The branches whose own checkpoint it is: one, or several if it was committed
            before branches were recorded. Empty if its branch was deleted or never moved to it.
        kept: True if it stays.
        reasons: The reasons why it stays, or why not.
        is_let_go: True if it belongs to no branch; then it expires after the grace time.
        is_reached: False if it is not even in the history of a branch or a tag.
        names: The reasons that hold whatever the policy: heads, tags, leases and seeds.
        is_next_to_go: True if it stays now, but not once the next checkpoint of its branch comes.
    """

    id: Digest
    manifest: Manifest
    branches: tuple[str, ...]
    kept: bool
    reasons: tuple[Reason, ...]
    is_let_go: bool = False
    is_reached: bool = True
    names: tuple[Reason, ...] = ()
    is_next_to_go: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The verdicts on all checkpoints that branches and tags reach.

    Attributes:
        chains: The checkpoints of each branch, by its name.
        verdicts: Those on checkpoints that belong to a branch, or that something else keeps.
        unowned: The checkpoints that belong to no branch, and are only in the history of others.
        notes: Warnings: metrics that no checkpoint has, and limits that cannot be met.
    """

    chains: Mapping[str, OwnChain]
    verdicts: tuple[Verdict, ...]
    unowned: Mapping[Digest, Manifest]
    notes: tuple[str, ...]


def decide(
    policies: Policies,
    *,
    heads: Mapping[str, Digest],
    tags: Mapping[str, Digest],
    reached: Reached,
    own: Callable[[str, Digest], OwnChain],
    freed: Freed | None = None,
    leases: Mapping[str, int] = MappingProxyType({}),
    resumed: Mapping[str, Digest] = MappingProxyType({}),
    mirrors: Mapping[str, MirroredTo] = MappingProxyType({}),
) -> Decision:
    """Judge all live checkpoints that a branch or a tag reaches, newest first.

    Args:
        policies: The policy of each branch.
        heads: The checkpoint of each branch.
        tags: The checkpoint of each tag.
        reached: Returns the live checkpoints reachable from the given ones, newest first.
        own: Returns the live checkpoints of a branch, given its name and head.
        freed: Returns the bytes that each checkpoint frees once those before it have expired. Only
            MaxBytes needs it.
        leases: The tags that are leases, each with its end in microseconds since 1970.
        resumed: The checkpoints that runs were resumed from, by the branch of the run.
        mirrors: For each branch that is mirrored, the place and the checkpoints where what is there
            begins. Newer ones stay, `UNMIRRORED_MAX` of them at most.

    Raises:
        InvalidInputError: A policy passed by the caller uses a metric that no checkpoint has.
    """
    live = dict(reached([*heads.values(), *tags.values(), *resumed.values()]))
    chains = {name: own(name, head) for name, head in sorted(heads.items())}
    seeds = [(name, id) for name, chain in chains.items() for id in chain.seeds]
    reasons = _for_names(live, heads, tags, seeds if policies.keep_seeds else (), leases)
    for name, id in sorted(resumed.items()):
        if id in reasons:
            text = f"resumed from by the run on {name}"
            reasons[id].append(Reason(kind="resumed", text=text, branch=name))
    named = {id: tuple(each) for id, each in reasons.items()}
    for id, reason in _unmirrored(chains, mirrors):
        reasons[id].append(reason)
    owners: dict[Digest, list[str]] = {}
    dropped: dict[Digest, Reason] = {}
    notes: list[str] = []
    for name, chain in chains.items():
        for id, _ in chain.checkpoints:
            owners.setdefault(id, []).append(name)
        if not policies.judges(name):
            text = f"on {name}, which is left alone"
            left_alone = Reason(kind="left_alone", text=text, branch=name)
            for id, _ in chain.checkpoints:
                reasons[id].append(left_alone)
            continue
        policy = policies.of_branch(name)
        kept, gone, over = _judge(policy, chain.checkpoints, named=reasons, freed=freed)
        on_branch: dict[Reason, Reason] = {}  # many checkpoints share one
        for choice in kept:
            if choice.reason not in on_branch:
                on_branch[choice.reason] = choice.reason.on(name)
            reasons[choice.id].append(on_branch[choice.reason])
        passed_over = policy.passed_over(chain.checkpoints)
        dropped.update({choice.id: choice.reason for choice in passed_over})
        dropped.update(gone)
        notes += [
            f"Branch {name}: {note}" for note in (policy.note(chain.checkpoints), over) if note
        ]
    if policies.is_given:
        _check_metrics(policies, chains)
    unowned = {id: item for id, item in live.items() if id not in owners and not reasons[id]}
    for id, reason in _in_histories(unowned, policies, chains, heads, reached).items():
        reasons[id].append(reason)
        del unowned[id]
    return Decision(
        chains=chains,
        verdicts=tuple(
            Verdict(
                id=id,
                manifest=manifest,
                branches=tuple(owners.get(id, ())),
                kept=bool(reasons[id]),
                reasons=tuple(dict.fromkeys(reasons[id])) or (dropped.get(id, NOTHING),),
                names=named[id],
            )
            for id, manifest in live.items()
            if id not in unowned
        ),
        unowned=unowned,
        notes=tuple(notes),
    )


def next_to_go(
    kept_now: Iterable[Verdict], policies: Policies, chains: Mapping[str, OwnChain]
) -> tuple[Digest, ...]:
    """Return the checkpoints that each branch keeps now, but not after its next checkpoint.

    The next one is expected without metrics, and at the same distance from the newest as the newest
    is from the one before. Limits of bytes are not considered.
    """
    reasons = {verdict.id: verdict.reasons for verdict in kept_now}
    found: dict[Digest, None] = {}
    for name, chain in chains.items():
        policy = policies.of_branch(name)
        if not policies.judges(name) or policy.keeps_all or not chain.checkpoints:
            continue
        with suppress(InvalidInputError):  # a function of KeepIf may fail on it
            kept = {choice.id for choice in policy.keep(_with_next(chain.checkpoints))}
            for id, _ in chain.checkpoints:
                if (
                    id in reasons
                    and id not in kept
                    and all(
                        reason.branch == name and (reason.policy or reason.kind == "head")
                        for reason in reasons[id]
                    )
                ):
                    found[id] = None
    return tuple(found)


def _with_next(chain: Chain) -> Chain:
    """Return a branch with the next checkpoint that is expected."""
    id, newest = chain[0]
    before = chain[1][1] if len(chain) > 1 else newest
    created = newest.created + max(0, newest.created - before.created)
    step = newest.step
    if step is not None:
        step += max(1, step - (before.step or 0))
    expected = replace(
        newest,
        parents=(id,),
        created=created,
        elapsed=newest.elapsed_until(created),
        step=step,
        metrics={},
    )
    return ((Digest.of(b"the next one"), expected), *chain)


def _judge(
    policy: Policy, chain: Chain, *, named: Mapping[Digest, Sequence[Reason]], freed: Freed | None
) -> tuple[list[Choice], dict[Digest, Reason], str]:
    """Return what a policy keeps of a branch, what its limit of bytes gives up, and a warning.

    The warning is empty unless the limit cannot be met.
    """
    kept = list(policy.keep(chain))
    limits = [part for part in policy.parts if isinstance(part, MaxBytes)]
    if not limits:
        return kept, {}, ""
    assert freed is not None
    if len(limits) == len(policy.parts):
        kept = list(KeepAll().keep(chain))
    limit = min(limits, key=lambda part: part.n)
    ranks: dict[Digest, int] = {}
    for choice in kept:
        ranks[choice.id] = max(choice.rank, ranks.get(choice.id, ANY))
    ranks.update({id: ALWAYS for id, _ in chain if named[id]})
    gone, is_met = over_limit(limit.n, chain, ranks, freed)
    over = Reason(kind="over_limit", text=f"over the limit of {limit.size}", policy=limit)
    note = "" if is_met else UNMET.format(limit.size)
    return [choice for choice in kept if choice.id not in gone], dict.fromkeys(gone, over), note


def _for_names(
    live: Mapping[Digest, Manifest],
    heads: Mapping[str, Digest],
    tags: Mapping[str, Digest],
    seeds: Iterable[tuple[str, Digest]],
    leases: Mapping[str, int],
) -> dict[Digest, list[Reason]]:
    """Return the reasons that hold whatever the policy: a name, or a branch started from it."""
    reasons: dict[Digest, list[Reason]] = {id: [] for id in live}
    named = (
        *((id, _named("head", name)) for name, id in sorted(heads.items())),
        *((id, _tagged(name, leases.get(name))) for name, id in sorted(tags.items())),
        *((id, _named("seed", name)) for name, id in sorted(seeds)),
    )
    for id, reason in named:
        if id in reasons:
            reasons[id].append(reason)
    return reasons


def _unmirrored(
    chains: Mapping[str, OwnChain], mirrors: Mapping[str, MirroredTo]
) -> Iterator[tuple[Digest, Reason]]:
    """Yield the newest checkpoints of each branch that are not in its mirror yet."""
    for name, (place, begins) in mirrors.items():
        reason = Reason(kind="unmirrored", text=f"not yet in the mirror {place}", branch=name)
        for id, _ in islice(chains[name].checkpoints, UNMIRRORED_MAX):
            if id in begins:
                break
            yield id, reason


def _named(kind: str, branch: str) -> Reason:
    """The reason of the head or the seed of a branch."""
    return Reason(kind=kind, text=f"{kind} of {branch}", branch=branch)


def _tagged(name: str, until: int | None) -> Reason:
    """The reason of a tag, or of a lease until a time."""
    if until is None:
        return Reason(kind="tag", text=f"tag {name}", tag=name)
    text = f"lease {name} until {to_the_minute(until)}"
    return Reason(kind="lease", text=text, tag=name, until=utc(until))


def _in_histories(
    unowned: Mapping[Digest, Manifest],
    policies: Policies,
    chains: Mapping[str, OwnChain],
    heads: Mapping[str, Digest],
    reached: Reached,
) -> dict[Digest, Reason]:
    """Return the checkpoints in the history of branches that keep everything, with the reason.

    If there are many such branches, finding the right one would take too long.
    """
    keepers = [
        name for name in chains if not policies.judges(name) or policies.of_branch(name).keeps_all
    ]
    groups = [[name] for name in keepers] if len(keepers) <= KEEPERS_MAX else [keepers]
    found: dict[Digest, Reason] = {}
    for names in groups:
        if len(found) == len(unowned):
            break
        branch = names[0] if len(names) == 1 else None
        text = f"in the history of {branch or f'one of {len(names)} branches'}"
        reason = Reason(kind="history", text=text, branch=branch)
        for id, _ in reached([heads[name] for name in names]):
            if id in unowned:
                found.setdefault(id, reason)
    return found


def _check_metrics(policies: Policies, chains: Mapping[str, OwnChain]) -> None:
    """Raise InvalidInputError for a metric that no checkpoint of any branch has."""
    judged = [chain for name, chain in chains.items() if policies.judges(name)]
    known = {
        name for chain in judged for _, manifest in chain.checkpoints for name in manifest.metrics
    }
    policy = policies.default
    unknown = sorted(policy.metrics - known) if policy else ()
    if unknown and any(chain.checkpoints for chain in judged):
        there = known_names(unknown[0], sorted(known), what="metrics")
        raise InvalidInputError(f"No checkpoint has the metric {shown(unknown[0])}. {there}")

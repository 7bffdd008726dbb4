"""A graph of checkpoints without arrays, for policies to decide on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.digest import Digest
from ckptstore.documents.manifest import Manifest
from ckptstore.documents.settings import Claim
from ckptstore.history import ancestors, own_chain
from ckptstore.retention import (
    KeepAll,
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepSteps,
    KeepWithin,
    MaxToKeep,
    Policies,
    Policy,
    decide,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore.retention import Decision

HOUR = 3_600_000_000


class Graph:
    """Checkpoints by number; each has the one before it on its branch as its parent."""

    def __init__(self) -> None:
        self.manifests: dict[Digest, Manifest] = {}
        self.numbers: dict[Digest, int] = {}
        self.heads: dict[str, Digest] = {}
        self.tags: dict[str, Digest] = {}
        self.expired: set[Digest] = set()
        self.sizes: dict[int, int] = {}  # bytes that each frees alone, by number

    def add(self, branch: str = "main", *, is_recorded: bool = True, **facts: Any) -> Digest:
        number = len(self.manifests)
        id = Digest.of(b"%d" % number)
        parent = self.heads.get(branch)
        facts = {"created": number * HOUR, "step": number, **facts}
        facts["branch"] = branch if is_recorded else None
        elapsed = self.manifests[parent].elapsed_until(facts["created"]) if parent else None
        facts = {"parents": (parent,) if parent else (), "elapsed": elapsed, **facts}
        self.manifests[id] = Manifest(pages=(), structure=id, **facts)
        self.heads[branch], self.numbers[id] = id, number
        return id

    def live(self, ids: Iterable[Digest]) -> tuple[Digest, ...]:
        """These checkpoints, each expired one replaced by its first live ancestor."""
        found = []
        for start in ids:
            id: Digest | None = start
            while id in self.expired:
                id = next(iter(self.manifests[id].parents), None)
            found += [id] if id else []
        return tuple(found)

    def reached(self, starts: Iterable[Digest]) -> Iterator[tuple[Digest, Manifest]]:
        walk = ancestors(starts, self.manifests.get)
        return ((id, manifest) for id, manifest in walk if id not in self.expired)

    def decide(self, policy: Policy | Policies, branches: Any = None) -> Decision:
        policies = policy if isinstance(policy, Policies) else Policies.given(policy, only=branches)
        return decide(
            policies,
            heads=self.heads,
            tags=self.tags,
            reached=self.reached,
            own=lambda name, head: own_chain(
                head,
                Claim(names=(name,)),
                self.manifests.get,
                lambda _, item: self.live(item.parents),
            ),
            freed=lambda ids: [self.sizes[self.numbers[id]] for id in ids],
        )

    def verdicts(self, policy: Policy | Policies, branches: Any = None) -> Any:
        return self.decide(policy, branches).verdicts

    def collect(self, policy: Policy | Policies, branches: Any = None) -> None:
        """Expire what a gc would, once the grace time is over."""
        decision = self.decide(policy, branches)
        reached = dict(ancestors([*self.heads.values(), *self.tags.values()], self.manifests.get))
        self.expired |= self.manifests.keys() - reached
        self.expired |= {verdict.id for verdict in decision.verdicts if not verdict.kept}
        self.expired |= decision.unowned.keys()

    def left(self) -> list[int]:
        """The numbers of those that have not expired."""
        return [number for id, number in self.numbers.items() if id not in self.expired]

    def kept(self, policy: Policy | Policies, branches: Any = None) -> list[int]:
        verdicts = self.verdicts(policy, branches)
        return sorted(self.numbers[verdict.id] for verdict in verdicts if verdict.kept)


EVERY = [
    KeepAll(),
    MaxToKeep(3),
    KeepBest("val_acc", "max", 2),
    KeepEveryNHours(0.5),
    KeepEveryNSteps(1000),
    KeepSteps({3, 1}),
    KeepWithin(2.5),
    KeepBest("loss", n=3, pending=0),
    MaxToKeep(1) | KeepBest("loss") | KeepEveryNHours(6),
]

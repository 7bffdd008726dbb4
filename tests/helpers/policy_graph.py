"""A graph of checkpoints without arrays, for policies to decide on."""

from __future__ import annotations

from typing import Any

from ckptstore.digest import Digest
from ckptstore.documents.manifest import Manifest
from ckptstore.history import ancestors
from ckptstore.retention import (
    KeepAll,
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepSteps,
    MaxToKeep,
    Policy,
    decide,
)

HOUR = 3_600_000_000


class Graph:
    """Checkpoints by number; each has the one before it on its branch as its parent."""

    def __init__(self) -> None:
        self.manifests: dict[Digest, Manifest] = {}
        self.numbers: dict[Digest, int] = {}
        self.heads: dict[str, Digest] = {}
        self.tags: dict[str, Digest] = {}
        self.expired: set[Digest] = set()

    def add(self, branch: str = "main", **facts: Any) -> Digest:
        number = len(self.manifests)
        id = Digest.of(b"%d" % number)
        parents = (self.heads[branch],) if branch in self.heads else ()
        facts = {"created": number * HOUR, "step": number, **facts}
        self.manifests[id] = Manifest(pages=(), structure=id, parents=parents, **facts)
        self.heads[branch], self.numbers[id] = id, number
        return id

    def verdicts(self, policy: Policy, branches: Any = None) -> Any:
        return decide(
            policy,
            heads=self.heads,
            tags=self.tags,
            reached=lambda starts: (
                (id, manifest)
                for id, manifest in ancestors(starts, self.manifests.get)
                if id not in self.expired
            ),
            branches=branches,
        )

    def kept(self, policy: Policy, branches: Any = None) -> list[int]:
        verdicts = self.verdicts(policy, branches)
        return sorted(self.numbers[verdict.id] for verdict in verdicts if verdict.kept)


EVERY = [
    KeepAll(),
    MaxToKeep(3),
    KeepBest("val_acc", "max", 2),
    KeepEveryNHours(0.5),
    KeepEveryNSteps(1000),
    KeepSteps({3, 1}),
    MaxToKeep(1) | KeepBest("loss") | KeepEveryNHours(6),
]

"""History: the graph of checkpoints, walked from newer to older.

Pure: manifests come from a function that the caller passes in.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest

    Lookup = Callable[[Digest], Manifest | None]
    Parents = Callable[[Digest, Manifest], Iterable[Digest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnChain:
    """The checkpoints that were committed on one branch.

    Attributes:
        checkpoints: These with their manifests, newest first.
        before: The first checkpoint of another branch behind them; None if there is none.
    """

    checkpoints: tuple[tuple[Digest, Manifest], ...]
    before: Digest | None

    @property
    def seed(self) -> Digest | None:
        """The checkpoint that the branch was started from: its first one if that is derived."""
        if self.before and self.checkpoints:
            id, manifest = self.checkpoints[-1]
            if manifest.is_derived:
                return id
        return self.before


def own_chain(
    head: Digest,
    names: Container[str | None],
    lookup: Lookup,
    parents: Parents | None = None,
) -> OwnChain:
    """Return the checkpoints of a branch without those of the branch that it was started from.

    These are the first parents of the head, up to the first one that records another branch.
    Manifests of earlier versions record none, and belong to every branch that reaches them so.

    Args:
        head: The newest checkpoint of the branch, or any other of its own.
        names: The names that its checkpoints record: its own, and None.
        lookup: Returns the manifest of an id, or None where the history ends.
        parents: From which checkpoints one was made, the first parent first.
    """
    found: list[tuple[Digest, Manifest]] = []
    seen: set[Digest] = set()
    id: Digest | None = head
    while id is not None and id not in seen:
        seen.add(id)
        manifest = lookup(id)
        if manifest is None:
            break
        if manifest.branch not in names:
            return OwnChain(checkpoints=tuple(found), before=id)
        found.append((id, manifest))
        made_from = manifest.parents if parents is None else parents(id, manifest)
        id = next(iter(made_from), None)
    return OwnChain(checkpoints=tuple(found), before=None)


def recorded_parents(_: Digest, manifest: Manifest) -> Iterable[Digest]:
    """Return the parents that a manifest names."""
    return manifest.parents


def ancestors(
    starts: Iterable[Digest], lookup: Lookup, parents: Parents = recorded_parents
) -> Iterator[tuple[Digest, Manifest]]:
    """Yield each checkpoint that is reachable from the starts, including these, newest first.

    A checkpoint never comes before the descendant through which it was found. A parent that the
    lookup does not find, as in a truncated history, ends that path.

    parents: from which checkpoints one was made; nothing behind the last one yielded is asked for.
    """
    seen: set[Digest] = set()
    queue: list[tuple[int, int, Digest, Manifest]] = []

    def add(id: Digest, found_at: int) -> None:
        manifest = None if id in seen else lookup(id)
        if manifest is not None:
            seen.add(id)
            heapq.heappush(queue, (-manifest.created, found_at, id, manifest))

    for position, start in enumerate(starts):
        add(start, position)
    count = len(seen)
    while queue:
        _, _, id, manifest = heapq.heappop(queue)
        yield id, manifest
        for parent in parents(id, manifest):
            count += 1
            add(parent, count)


def first_parents(start: Digest, lookup: Lookup) -> Iterator[tuple[Digest, Manifest]]:
    """Yield a checkpoint, its first parent, the first parent of that, and so on."""
    seen: set[Digest] = set()
    id: Digest | None = start
    while id is not None and id not in seen:
        seen.add(id)
        manifest = lookup(id)
        if manifest is None:
            return
        yield id, manifest
        id = manifest.parents[0] if manifest.parents else None

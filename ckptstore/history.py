"""History: the graph of checkpoints, walked from newer to older.

Pure: manifests come from a function that the caller passes in.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.settings import Claim

    Lookup = Callable[[Digest], Manifest | None]
    Parents = Callable[[Digest, Manifest], Iterable[Digest]]


def recorded_parents(_: Digest, manifest: Manifest) -> Iterable[Digest]:
    """Return the parents that a manifest names."""
    return manifest.parents


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnChain:
    """The checkpoints that were committed on one branch.

    Attributes:
        checkpoints: The ids with their manifests, newest first.
        others: The checkpoints of other branches in between, newest first.
        start: The parent of the oldest one, where the branch was started; None without a parent.
    """

    checkpoints: tuple[tuple[Digest, Manifest], ...]
    others: tuple[Digest, ...]
    start: Digest | None

    @property
    def seeds(self) -> tuple[Digest, ...]:
        """The checkpoint that the branch was started from, and the one it was last moved to.

        If the branch began with a derived checkpoint, this is the derived one, not its source.
        """
        moved_to, start = next(iter(self.others), None), self.start
        if start and self.checkpoints and self.checkpoints[-1][1].is_derived:
            start = self.checkpoints[-1][0]
            moved_to = None if moved_to == self.start else moved_to
        return tuple(dict.fromkeys(id for id in (start, moved_to) if id))


def own_chain(
    head: Digest, claim: Claim, lookup: Lookup, parents: Parents = recorded_parents
) -> OwnChain:
    """Return the checkpoints of a branch without those of the branch that it was started from.

    These are the first parents of the head that record the branch, up to the first one that records
    another. If the branch was moved to checkpoints of another branch, the walk continues behind
    them. A derived checkpoint is the first one of its branch. Manifests of earlier versions record
    no branch; they belong to the same branch as the checkpoint made from them.

    Args:
        head: The newest checkpoint of the branch, or any other of its own.
        claim: The names that its checkpoints record, and where they begin.
        lookup: Returns the manifest of an id, or None where the history ends.
        parents: Returns the parents of a checkpoint, the first parent first.
    """
    found: list[tuple[Digest, Manifest]] = []
    others: list[Digest] = []
    start: Digest | None = None
    is_own, is_last = True, False
    for id, manifest in first_parents(head, lookup, parents):
        is_last = is_last or id in (claim.begun or ())
        if manifest.branch is not None or is_last:
            is_own = manifest.branch in claim.names and not is_last
        if is_own:
            found.append((id, manifest))
            start = None
            is_last = manifest.is_derived and manifest.branch is not None
        else:
            others.append(id)
            start = start or id
            if is_last or claim.begun is None:
                break
    return OwnChain(checkpoints=tuple(found), others=tuple(others), start=start)


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


def first_parents(
    start: Digest, lookup: Lookup, parents: Parents = recorded_parents
) -> Iterator[tuple[Digest, Manifest]]:
    """Yield a checkpoint, its first parent, the first parent of that, and so on.

    parents: from which checkpoints one was made, the first parent first.
    """
    seen: set[Digest] = set()
    id: Digest | None = start
    while id is not None and id not in seen:
        seen.add(id)
        manifest = lookup(id)
        if manifest is None:
            return
        yield id, manifest
        id = next(iter(parents(id, manifest)), None)

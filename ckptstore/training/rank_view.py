"""RankView: a checkpoint as one rank sees it, with what that rank had of its own. ADR 0069."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckptstore.documents.nodes import DictNode
from ckptstore.training.tracked import RANDOM, RANKS, WORLD

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from ckptstore.documents.nodes import Node
    from ckptstore.training.group import Group

STACK_LEVEL = 6  # of the caller of `restore`


class RankView:
    """Puts what a rank had of its own in the place of what rank 0 had.

    Args:
        rank: The rank.

    Attributes:
        own: The names of what the rank had of its own.
        left: The names of what ranks had of their own, by rank, that is not in the view.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.own: tuple[str, ...] = ()
        self.left: dict[str, tuple[str, ...]] = {}
        self._base = f"{RANKS}/{rank}/"

    def __call__(self, root: Node) -> Node:
        """Return the structure of a checkpoint as the rank sees it."""
        if not isinstance(root, DictNode):
            return root
        items = dict(root.items)
        ranks = items.pop(RANKS, None)
        if isinstance(ranks, DictNode):
            for rank, names in ranks.items.items():
                if not isinstance(names, DictNode):
                    continue
                if rank != str(self.rank):
                    self.left[str(rank)] = tuple(map(str, names.items))
                    continue
                self.own = tuple(str(name) for name in names.items if name in items)
                items |= {name: node for name, node in names.items.items() if name in items}
        return replace(root, items=items)

    def path_of_all(self, path: str) -> str:
        """The path of something of this rank, as it is for what all ranks have alike."""
        return path.removeprefix(self._base)

    def report(
        self,
        group: Group | None,
        progress: Mapping[str, Any] | None,
        tracked: Container[str],
    ) -> None:
        """Warn of what is per rank and not restored, as where other ranks have saved it."""
        saved = (progress or {}).get(WORLD, 1)
        rank, size = (0, 1) if group is None else (group.rank, group.size)
        said = []
        gone = sorted(int(each) for each in self.left if int(each) >= size)
        if gone and rank == 0:
            names = sorted({name for each in gone for name in self.left[str(each)]})
            said.append(
                f"What rank{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))} had of "
                f"{'their' if len(gone) > 1 else 'its'} own is not restored: {', '.join(names)}."
            )
        missed = self.left.get(str(rank), ())
        if rank >= saved:
            missed = tuple(name for names in self.left.values() for name in names)
        if names := sorted({name for name in missed if name in tracked} - {RANDOM}):
            said.append(f"This rank has those of rank 0: {', '.join(names)}.")
        if said:
            warnings.warn(
                f"The checkpoint was saved by {saved} rank{'s' if saved > 1 else ''}, and this is "
                f"rank {rank} of {size}. {' '.join(said)}",
                stacklevel=STACK_LEVEL,
            )

"""Imported: the commits of one import of a folder, which undo takes back together (ADR 0044)."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from ckptstore.store.undo import Move

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.store.undo import OperationInfo

META = "imported"  # the key of `meta` by which a checkpoint is known to be imported


def as_one(
    operations: Iterator[OperationInfo], is_imported: Callable[[Digest], bool]
) -> Iterator[OperationInfo]:
    """Yield operations with all commits of one import joined in the newest of them.

    Args:
        operations: The operations, newest first.
        is_imported: Returns whether a checkpoint came from a file.
    """
    rest = operations
    while info := next(rest, None):
        if not _commits_import(info, is_imported):
            yield info
            continue
        members = [info]
        passed: list[OperationInfo] = []
        for other in rest:
            if _continues(members[-1], other) and _commits_import(other, is_imported):
                members.append(other)
                continue
            passed.append(other)
            if _branch(members[-1]) in {(move.kind, move.name) for move in other.moves or ()}:
                break
        rest = chain(passed, rest)
        yield _joined(members) if len(members) > 1 else info


def _commits_import(info: OperationInfo, is_imported: Callable[[Digest], bool]) -> bool:
    """Return whether an operation is the commit of an imported file."""
    if info.undoes is not None or len(info.moves or ()) != 1:
        return False
    (move,) = info.moves or ()
    return move.kind == "branch" and move.after is not None and is_imported(move.after)


def _continues(later: OperationInfo, earlier: OperationInfo) -> bool:
    """Return whether the same process made both, one right after the other on one branch."""
    if not earlier.moves or (later.user, later.who) != (earlier.user, earlier.who):
        return False
    return _branch(later) == _branch(earlier) and (later.moves or ())[0].before == (
        earlier.moves[0].after
    )


def _branch(info: OperationInfo) -> tuple[str, str]:
    move = (info.moves or ())[0]
    return move.kind, move.name


def _joined(members: list[OperationInfo]) -> OperationInfo:
    """Return the newest of some commits, which moves as far as all of them."""
    last, first = (info.moves[0] for info in (members[0], members[-1]) if info.moves)
    move = Move(kind="branch", name=last.name, before=first.before, after=last.after)
    return replace(
        members[0],
        description=f"imported {len(members)} files to {last.name}",
        moves=(move,),
        members=tuple(info.number for info in members),
    )

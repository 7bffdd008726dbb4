"""Moves: which branches and tags of the target move where, and the refusals in git's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ckptstore.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.transfer.side import Sides
    from ckptstore.transfer.wanted import Named, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class RefMove:
    """A branch or tag of the target that a transfer makes, moves or deletes.

    Attributes:
        kind: "branch" or "tag".
        name: Its name at the target.
        source: Its name at the source, or the revision there.
        before: The checkpoint it names; None if it does not exist.
        after: The checkpoint it is to name; None if it is deleted.
        is_forced: Whether the new checkpoint is not made from the old one.
    """

    kind: Literal["branch", "tag"]
    name: str
    source: str
    before: Digest | None
    after: Digest | None
    is_forced: bool = False


def moves(
    wanted: Wanted, named: Sequence[Named], sides: Sides, newest: Operation
) -> Iterator[RefMove]:
    """Yield the moves that a transfer makes.

    Args:
        wanted: What was asked for.
        named: The refs of the source that this names.
        sides: The repositories.
        newest: The newest operation of the target.

    Raises:
        ConflictError: A branch would not move forward, or a name is taken.
    """
    for item in named:
        refs, others = newest.heads, newest.tags
        if item.kind == "tag":
            refs, others = others, refs
        before = refs.get(item.name)
        is_ours = before is not None and _is_ours(item, before, wanted, sides)
        is_known = item.name in others or (before is not None and not is_ours)
        if before == item.id or (item.is_followed and is_known):
            continue
        if item.name in others and not wanted.mirror:
            raise _taken(item, sides)
        is_forced = False
        if before is not None:
            if is_ours if item.kind == "tag" else sides.is_made_from(item.id, before):
                pass  # a training moves its tags on, as its branch
            elif is_ours or wanted.force or wanted.mirror or wanted.under:
                is_forced = True
            elif item.kind == "tag":
                raise _other_tag(item, before, sides)
            elif wanted.is_pull and sides.is_made_from(before, item.id):
                continue
            else:
                raise _not_forward(item, before, sides, is_pull=wanted.is_pull)
        yield RefMove(
            kind="branch" if item.kind == "branch" else "tag",
            name=item.name,
            source=item.source,
            before=before,
            after=item.id,
            is_forced=is_forced,
        )
    if wanted.mirror:
        yield from _deleted(named, newest)


def _is_ours(item: Named, before: Digest, wanted: Wanted, sides: Sides) -> bool:
    """Return whether what a ref of the target drops came from the source."""
    if wanted.dropped is None:
        return False
    if item.kind == "branch":
        return before == wanted.dropped
    return sides.source.catalog.lookup(before) is not None


def _deleted(named: Sequence[Named], newest: Operation) -> Iterator[RefMove]:
    """Yield the refs of the target that the source does not have."""
    there = {(item.kind, item.name) for item in named}
    leases = newest.leases
    for name, id in newest.heads.items():
        if ("branch", name) not in there:
            yield RefMove(
                kind="branch", name=name, source=name, before=id, after=None, is_forced=True
            )
    for name, id in newest.tags.items():
        if ("tag", name) not in there and name not in leases:
            yield RefMove(kind="tag", name=name, source=name, before=id, after=None, is_forced=True)


def _taken(item: Named, sides: Sides) -> ConflictError:
    other = "tag" if item.kind == "branch" else "branch"
    return ConflictError(
        f"{item.name!r} is a {other} in {sides.target.place} and a {item.kind} in "
        f"{sides.source.place}. Choose another name, or delete one of them."
    )


def _other_tag(item: Named, before: Digest, sides: Sides) -> ConflictError:
    return ConflictError(
        f"Tag {item.name!r} is at {before.short} in {sides.target.place}, and at {item.id.short} "
        f"in {sides.source.place}. To move it, pass force=True."
    )


def _not_forward(item: Named, before: Digest, sides: Sides, *, is_pull: bool) -> ConflictError:
    there = f"Branch {item.name!r} is at {before.short} in {sides.target.place}, which"
    if is_pull:
        return ConflictError(
            f"{there} {item.id.short} from {sides.source.place} is not made from "
            f"(non-fast-forward). Pull it under another name, branches={{{item.source!r}: "
            "'NAME'}; or pass force=True to drop what only the branch here has."
        )
    return ConflictError(
        f"{there} {item.id.short} is not made from (non-fast-forward): it moved on there. Pull "
        f"first; or push under another name, branches={{{item.source!r}: 'NAME'}}; or pass "
        "force=True to drop what only the branch there has."
    )

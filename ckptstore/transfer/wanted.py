"""Wanted: what a caller asks to transfer, checked, and the refs of the source that it names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, SupportsIndex

from ckptstore.documents.names import check_ref_name, check_strings
from ckptstore.errors import InvalidInputError, shown
from ckptstore.store.refs import check_known
from ckptstore.transfer.remotes import remotes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.operation import Operation
    from ckptstore.transfer.side import Side

    Branches = str | Sequence[str] | Mapping[str, str] | None
    Tags = bool | str | Sequence[str] | None

DEPTH_MAX = 1 << 62  # more checkpoints than there can be


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A ref of the source, or a checkpoint that becomes a ref.

    Attributes:
        kind: "branch" or "tag".
        source: The name, or the revision, at the source.
        name: Its name at the target.
        id: The checkpoint.
        is_followed: True for a tag that was not asked for, and goes with its branch.
    """

    kind: str
    source: str
    name: str
    id: Digest
    is_followed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to transfer.

    Attributes:
        branches: The names at the target by the names or revisions at the source; None for all
            branches.
        tags: The names of tags, True for all; None for those in the history of the branches.
        depth: How many of the newest checkpoints of each ref have their arrays; None for all.
        force: Whether branches and tags move that do not move forward.
        mirror: Whether the target gets exactly the refs of the source.
        under: What the names of branches at the target begin with; they follow the source.
        policies: Whether the saved policies of the branches go along.
        is_pull: Whether the target is the repository of the caller.
        dropped: A checkpoint that branches of the target may drop, as it is known to come from
            here. Tags of the target then move if what they name is known here.
    """

    branches: Mapping[str, str] | None = None
    tags: tuple[str, ...] | bool | None = None
    depth: int | None = None
    force: bool = False
    mirror: bool = False
    under: str = ""
    policies: bool = False
    is_pull: bool = False
    dropped: Digest | None = None

    @classmethod
    def of(
        cls,
        *,
        branches: Branches = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
        force: bool = False,
        mirror: bool = False,
        under: str = "",
        policies: bool = False,
        is_pull: bool = False,
        dropped: Digest | None = None,
    ) -> Self:
        """Check the arguments of a caller."""
        if mirror and (branches is not None or tags is not None):
            raise InvalidInputError("A mirror has all branches and tags: name none with mirror.")
        return cls(
            branches=_branches(branches),
            tags=tags
            if tags is None or isinstance(tags, bool)
            else check_strings(tags, what="tags"),
            depth=_depth(depth),
            force=force,
            mirror=mirror,
            under=under,
            policies=policies,
            is_pull=is_pull,
            dropped=dropped,
        )

    @property
    def verb(self) -> str:
        """The word for what the target's log records."""
        return ("fetched" if self.under else "pulled") if self.is_pull else "received"

    def named(self, source: Side, newest: Operation) -> list[Named]:
        """Return the refs of the source that are wanted, those tags last that only follow."""
        if self.mirror and not newest.heads:
            raise InvalidInputError(
                f"{source.place} has no branch, so a mirror of it would delete all there are."
            )
        found = [*self._branches_of(source, newest)]
        tags = {name: id for name, id in newest.tags.items() if name not in newest.leases}
        is_followed = self.tags is None and not self.mirror
        chosen: Mapping[str, Digest] = tags
        if isinstance(self.tags, tuple):
            for name in self.tags:
                check_known(name, tags, kind="tag")
            chosen = {name: tags[name] for name in self.tags}
        elif self.tags is False:
            chosen = {}
        asked = {named.name for named in found if named.kind == "tag"}
        found += (
            Named(kind="tag", source=name, name=name, id=id, is_followed=is_followed)
            for name, id in sorted(chosen.items())
            if name not in asked
        )
        return found

    def _branches_of(self, source: Side, newest: Operation) -> list[Named]:
        if self.branches is None:
            names = newest.heads if self.mirror else _own(newest)
            return [self._branch(name, name, newest.heads[name]) for name in sorted(names)]
        found = []
        for rev, name in self.branches.items():
            if rev in newest.heads:
                found.append(self._branch(rev, name, newest.heads[rev]))
            elif rev in newest.tags and rev == name:
                found.append(Named(kind="tag", source=rev, name=name, id=newest.tags[rev]))
            elif rev == name:
                check_known(rev, newest.heads, kind="branch")
            else:
                id, _ = source.resolver.readable(rev)
                found.append(self._branch(rev, name, id))
        return found

    def _branch(self, rev: str, name: str, id: Digest) -> Named:
        name = check_ref_name(f"{self.under}/{name}" if self.under else name, kind="branch")
        return Named(kind="branch", source=rev, name=name, id=id)


def _own(newest: Operation) -> list[str]:
    """Return the branches without those that were fetched from a remote."""
    remotes = remotes_of(newest.settings)
    return [name for name in newest.heads if name.partition("/")[0] not in remotes]


def _branches(branches: Branches) -> Mapping[str, str] | None:
    if branches is None:
        return None
    if isinstance(branches, Mapping):
        for name in branches.values():
            check_ref_name(name, kind="branch")
        return dict(
            zip(check_strings(list(branches), what="branches"), branches.values(), strict=True)
        )
    return {name: name for name in check_strings(branches, what="branches")}


def _depth(depth: SupportsIndex | None) -> int | None:
    if depth is None:
        return None
    number = 0
    if isinstance(depth, SupportsIndex) and not isinstance(depth, bool):
        with suppress(TypeError):  # an array of several
            number = depth.__index__()
    if number < 1:
        raise InvalidInputError(
            f"depth is {shown(depth)}; a number of checkpoints of 1 or more is expected."
        )
    return min(number, DEPTH_MAX)

"""Transfers: the methods of a repository by which checkpoints go to others and come from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import SupportsIndex

    from ckptstore.documents.settings import Mirrored
    from ckptstore.transfer.plan import TransferPlan, TransferReport
    from ckptstore.transfer.side import Side
    from ckptstore.transfer.wanted import Branches, Tags


class Transfers(ABC):
    """A repository that has remotes, and can be one."""

    @abstractmethod
    def _side(self) -> Side:
        """Return the parts of this repository that a transfer needs."""

    @abstractmethod
    def _side_at(self, url: str | Path) -> Side:
        """Open another repository as this one was opened, and return these parts of it."""

    @property
    def remotes(self) -> dict[str, str]:
        """The URLs of other repositories that have a name here, by name."""
        from ckptstore.transfer.remotes import remotes_of

        return remotes_of(self._side().oplog.newest().settings)

    def set_remote(self, name: str, url: str | Path | None) -> None:
        """Give another repository a name, which push, pull and fetch take.

        The name is kept in this repository, and never copied to another one.

        Args:
            name: Such as "origin", which is used where no other is named.
            url: A path or URL; a path is kept as an absolute one. None removes the name.

        Raises:
            InvalidInputError: The name is not legal, or the URL is none or holds credentials.
            NotFoundError: There is no such remote to remove.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> repo.set_remote("backup", "memory://backup")
            >>> repo.remotes
            {'backup': 'memory://backup'}
        """
        from ckptstore.transfer.remotes import change_remote

        change, done = change_remote(name, url)
        self._side().refs.change_settings(change, done=done)

    @property
    def mirrors(self) -> dict[str, Mirrored]:
        """The mirrors of branches, and the newest checkpoint that each of them has.

        A CheckpointManager with `mirror` records them. A gc keeps the newest ten checkpoints of a
        branch that are not there yet.
        """
        return self._side().oplog.newest().mirrored

    def _set_mirror(self, branch: str, url: str | None, newest: str | None = None) -> None:
        """Record where a branch is mirrored, as a CheckpointManager does. Nothing is pushed.

        A push to that URL records how far it came.

        Args:
            branch: The branch, which may begin later.
            url: The URL of the mirror. None: there is none, and a gc keeps nothing for it.
            newest: The id of the newest checkpoint that is there; None if there is none.
        """
        from ckptstore.transfer.remotes import change_mirror

        change, done = change_mirror(branch, url, newest)
        side = self._side()
        settings = side.oplog.newest().settings
        if change(settings) != settings:
            side.refs.change_settings(change, done=done)

    def plan_push(
        self,
        remote: str | Path | None = None,
        *,
        branches: Branches = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
        force: bool = False,
        mirror: bool = False,
        policies: bool = False,
    ) -> TransferPlan:
        """Plan a push: what the other repository lacks, and which of its refs will move.

        Nothing is changed before `TransferPlan.execute` is called.

        Args:
            remote: A remote, URL or path. "origin", or the only remote, when None.
            branches: The branches to push, or a mapping of branches or revisions here to branches
                there. All when None, without those that were fetched.
            tags: The tags to push; True for all. When None, those in the history of the branches
                that are new there.
            depth: How many of the newest checkpoints of each branch keep their arrays there; older
                ones that are new there become history, as expired ones are. All when None.
            force: Whether branches and tags move even if that drops checkpoints there.
            mirror: Whether the other repository gets exactly the branches and tags of this one, and
                others there are deleted.
            policies: Whether saved retention policies go along: for all branches each policy that
                is saved, for named branches the one that applies to each. They replace those of
                these branches there.

        Raises:
            ConflictError: A branch moved on there, or a name is taken.
            NotFoundError: There is no such repository, remote, branch or tag.
            InvalidInputError: An argument is wrong, or no remote is named and none is the default.
            CorruptError: A document that has to be read is damaged.

        Example:
            >>> import ckptstore, numpy as np
            >>> backup = ckptstore.init("memory://copy")
            >>> repo = ckptstore.init("memory://")
            >>> _ = repo.commit({"w": np.zeros(3)}, step=100)
            >>> plan = repo.plan_push("memory://copy")
            >>> len(plan.checkpoints), [move.name for move in plan.moves]
            (1, ['main'])
            >>> plan.execute().bytes == plan.bytes, backup.resolve("main").step
            (True, 100)
        """
        return self._transfer(
            remote,
            is_pull=False,
            branches=branches,
            tags=tags,
            depth=depth,
            force=force,
            mirror=mirror,
            policies=policies,
        )

    def push(
        self,
        remote: str | Path | None = None,
        *,
        branches: Branches = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
        force: bool = False,
        mirror: bool = False,
        policies: bool = False,
    ) -> TransferReport:
        """Copy branches with their checkpoints to another repository.

        Only what is missing there is sent, every byte is verified, and the refs move by one
        operation at the end. A push that was interrupted goes on where it ended. Takes the
        arguments of `plan_push`, and raises its errors.

        Raises:
            StorageError: A storage failed. No ref has moved, unless the error states that the
                outcome is unknown.
        """
        return self.plan_push(
            remote,
            branches=branches,
            tags=tags,
            depth=depth,
            force=force,
            mirror=mirror,
            policies=policies,
        ).execute()

    def plan_pull(
        self,
        remote: str | Path | None = None,
        *,
        branches: Branches = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
        force: bool = False,
        mirror: bool = False,
        policies: bool = False,
    ) -> TransferPlan:
        """Plan a pull: what this repository lacks, and which of its refs will move.

        Takes the arguments of `plan_push`, with both repositories exchanged, and raises its errors.
        """
        return self._transfer(
            remote,
            is_pull=True,
            branches=branches,
            tags=tags,
            depth=depth,
            force=force,
            mirror=mirror,
            policies=policies,
        )

    def pull(
        self,
        remote: str | Path | None = None,
        *,
        branches: Branches = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
        force: bool = False,
        mirror: bool = False,
        policies: bool = False,
    ) -> TransferReport:
        """Copy branches with their checkpoints from another repository.

        A branch that is ahead of the other one stays. Otherwise as `push`, with both repositories
        exchanged.

        Example:
            >>> import ckptstore
            >>> colleague = ckptstore.init("memory://colleague")
            >>> _ = colleague.commit({"lr": 0.1}, step=7)
            >>> repo = ckptstore.init("memory://")
            >>> repo.pull("memory://colleague").moves[0].name, repo.resolve("main").step
            ('main', 7)
        """
        return self.plan_pull(
            remote,
            branches=branches,
            tags=tags,
            depth=depth,
            force=force,
            mirror=mirror,
            policies=policies,
        ).execute()

    def plan_fetch(
        self,
        remote: str | None = None,
        *,
        branches: str | Sequence[str] | None = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
    ) -> TransferPlan:
        """Plan a fetch. Takes the arguments of `fetch`, and raises its errors."""
        from ckptstore.transfer.remotes import name_of

        under = name_of(remote, self.remotes)
        return self._transfer(
            under, is_pull=True, under=under, branches=branches, tags=tags, depth=depth
        )

    def fetch(
        self,
        remote: str | None = None,
        *,
        branches: str | Sequence[str] | None = None,
        tags: Tags = None,
        depth: SupportsIndex | None = None,
    ) -> TransferReport:
        """Copy branches of a remote to branches named "REMOTE/BRANCH", which follow them.

        No other branch moves. A push without names leaves these out.

        Args:
            remote: The name of a remote. "origin", or the only one, when None.
            branches: The branches of the remote; all when None.
            tags: As in `plan_push`.
            depth: As in `plan_push`.

        Raises:
            NotFoundError: There is no such remote, or no such branch or tag there.
        """
        return self.plan_fetch(remote, branches=branches, tags=tags, depth=depth).execute()

    def _transfer(self, remote: str | Path | None, *, is_pull: bool, **wanted: Any) -> TransferPlan:
        """Plan to copy what is wanted to another repository, or from it."""
        from ckptstore.transfer.plan import plan_transfer
        from ckptstore.transfer.remotes import url_of
        from ckptstore.transfer.wanted import Wanted

        asked = Wanted.of(is_pull=is_pull, **wanted)
        here = self._side()
        there = self._side_at(url_of(remote, here.oplog.newest().settings))
        source, target = (there, here) if is_pull else (here, there)
        return plan_transfer(source, target, asked, meter=here.objects.meter)

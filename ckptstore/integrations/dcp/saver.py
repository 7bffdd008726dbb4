"""Saver: saves of a sharded training that end within a bounded time, also in the background.

The planning is that of torch.distributed.checkpoint, and the storage is StoreWriter. Only the
exchanges between the ranks are not torch's: `dcp.save` waits in collectives of the group of the
training, without a bound for a rank that is gone, and beside a training in another thread they mix
with its collectives. See `rank_group` and ADR 0070.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ckptstore.errors import shown
from ckptstore.integrations.dcp.stager import Stager, not_too_deep, states
from ckptstore.integrations.dcp.writer import StoreWriter
from ckptstore.rank_group import TIMEOUT_SECONDS, RankGroup
from ckptstore.repository import DEFAULT_BRANCH, Repository, open
from ckptstore.training.background import Background

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self, SupportsIndex

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

    from ckptstore.digest import Digest
    from ckptstore.rank_group import Meeting


class Saver:
    """Saves a training on many ranks to one branch; every rank makes one, and calls the same.

    Where a rank died, hangs or raises, all others raise one RankError that names it, nothing is
    committed, and the last checkpoint is as it was. Close it before the process group is destroyed.

    Args:
        store: A repository, or its folder or URL. A missing one is made.
        branch: The branch to commit to.
        group: A group of torch.distributed; None for all ranks. Its backend does not matter.
        timeout: Seconds that a rank may take to come to a save, and in a save from one object put
            to the next. A rank without a sign of life is given up after 60 s, or `timeout` if less.

    Raises:
        InvalidInputError: An argument is wrong.
        CkptStoreError: The repository cannot be opened.

    Example:
        >>> import ckptstore, torch
        >>> from ckptstore.integrations.dcp import Saver
        >>> repo = ckptstore.init("memory://")
        >>> with Saver(repo) as saver:
        ...     saver.async_save({"model": {"w": torch.ones(3)}}, step=100)
        >>> repo.checkout(), repo.resolve("main").step
        ({'model': {'w': tensor([1., 1., 1.])}}, 100)
    """

    def __init__(
        self,
        store: str | Path | Repository,
        *,
        branch: str = DEFAULT_BRANCH,
        group: Any = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._repo = store if isinstance(store, Repository) else open(store, create=True)
        self._branch = branch
        StoreWriter(self._repo, branch=branch)  # checks the name
        self._group = RankGroup(f"save/{branch}", group=group, timeout=timeout)
        self._stager, self._background = Stager(), Background()

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        retry: bool = False,
        planner: SavePlanner | None = None,
    ) -> Digest:
        """Save a state, and return the id of the checkpoint on all ranks.

        Args:
            state: A state as for `dcp.save`: nested dicts with tensors and DTensors.
            step: As for `Repository.commit`, of which the facts of rank 0 count.
            metrics: As for `Repository.commit`.
            message: As for `Repository.commit`.
            meta: As for `Repository.commit`.
            retry: As for `Repository.commit`.
            planner: Plans what each rank saves; None for that of torch.

        Raises:
            RankError: A rank died, hangs, did not come or raised; so did a save in the background.
            InvalidInputError: An argument is wrong.
        """
        self.wait()
        with self._meeting(step) as meeting:
            writer = self._writer(step, metrics, message, meta, retry)
            return self._save(meeting, states(state), writer, planner)

    def async_save(
        self,
        state: Mapping[str, Any],
        *,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        retry: bool = False,
        planner: SavePlanner | None = None,
    ) -> None:
        """Copy a state, and save the copy beside the training.

        It blocks for the copy to memory that all saves share, and before that until the save before
        has ended. The error of a save is raised by the next call of a method.

        Args:
            state: As for `save`.
            step: As for `save`.
            metrics: As for `save`.
            message: As for `save`.
            meta: As for `save`.
            retry: As for `save`.
            planner: As for `save`.

        Raises:
            RankError: The save before has failed.
            InvalidInputError: An argument is wrong.
            StorageError: There is no memory for the copy.
        """
        self.wait()
        with self._meeting(step) as meeting:
            writer = self._writer(step, metrics, message, meta, retry)
            staged = [self._stager.stage(state)]  # popped, so that the memory is free once it ends
        self._background.start(lambda: self._save(meeting, staged.pop(), writer, planner))

    def wait(self) -> None:
        """Wait until the save in the background has ended.

        Raises:
            RankError: It has failed.
        """
        self._background.wait()

    def close(self) -> None:
        """Wait for the save in the background, and leave the other ranks.

        Raises:
            RankError: The save has failed.
        """
        try:
            self.wait()
        finally:
            self._group.close()
            self._stager.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _writer(self, step: Any, metrics: Any, message: str, meta: Any, retry: bool) -> StoreWriter:
        return StoreWriter(
            self._repo,
            branch=self._branch,
            step=step,
            metrics=metrics,
            message=message,
            meta=meta,
            retry=retry,
        )

    def _meeting(self, step: object) -> Meeting:
        return self._group.meeting("save" if step is None else f"save of step {shown(step)}")

    def _save(
        self,
        meeting: Meeting,
        state: dict[str, Any],
        writer: StoreWriter,
        planner: SavePlanner | None,
    ) -> Digest:
        meter = self._repo._side().catalog.objects.meter  # noqa: SLF001
        advance = meter.also_heard_by(lambda _: self._group.advance())
        with meeting, advance:
            return save_in(meeting, state, writer, planner, is_first=self._group.rank == 0)


def save_in(
    meeting: Meeting,
    state: dict[str, Any],
    writer: StoreWriter,
    planner: SavePlanner | None = None,
    *,
    is_first: bool,
) -> Digest:
    """Do what `dcp.save` does, in a meeting of all ranks; the id of the checkpoint.

    is_first: True on rank 0.
    """
    planner = DefaultSavePlanner() if planner is None else planner
    of_all: list[Metadata] = []

    def plan() -> SavePlan:
        meta = writer.storage_meta()
        with not_too_deep():
            planner.set_up_planner(state, storage_meta=meta, is_coordinator=is_first)
        writer.set_up_storage_writer(is_first)
        return writer.prepare_local_plan(planner.create_local_plan())

    def divide(plans: list[SavePlan]) -> list[SavePlan]:
        plans, metadata = planner.create_global_plan(plans)
        of_all.append(metadata)
        return writer.prepare_global_plan(plans)

    def publish(results: list[Any]) -> Digest:
        writer.finish(of_all[0], results)
        id: Digest = of_all[0].storage_meta.checkpoint_id  # type: ignore[union-attr,assignment]
        return id

    own = meeting.divide(plan, divide)
    return meeting.agree(
        lambda: writer.write_data(planner.finish_plan(own), planner).value(), publish
    )

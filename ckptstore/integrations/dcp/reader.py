"""StoreReader: the storage behind `dcp.load`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.integrations.dcp.gloo_exit import expect_collectives
from ckptstore.integrations.dcp.stored import StoredNames
from ckptstore.repository import DEFAULT_BRANCH, Repository, open

if TYPE_CHECKING:
    import os

    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner


class StoreReader(StorageReader):
    """Loads from a repository: `dcp.load(state, storage_reader=StoreReader("runs/store"))`.

    Any checkpoint can be loaded, whether it was saved by one process or by any number of ranks. A
    rank reads the chunks that its shards touch, each checked, and copies from these.

    Args:
        store: A repository, or its folder or URL.
        rev: The revision to read. All ranks read the checkpoint that it names on the coordinator.
            A `checkpoint_id` that is passed to `dcp.load` is one too.

    Raises:
        NotFoundError: There is no such repository.

    Example:
        >>> import ckptstore, torch
        >>> import torch.distributed.checkpoint as dcp
        >>> from ckptstore.integrations.dcp import StoreReader
        >>> repo = ckptstore.init("memory://")
        >>> _ = repo.commit({"model": {"w": torch.ones(3)}, "epoch": 2})
        >>> state = {"model": {"w": torch.zeros(3)}, "epoch": 0}
        >>> dcp.load(state, storage_reader=StoreReader(repo), no_dist=True)
        >>> state
        {'model': {'w': tensor([1., 1., 1.])}, 'epoch': 2}
    """

    def __init__(self, store: str | Path | Repository, rev: str = DEFAULT_BRANCH) -> None:
        self._repo = store if isinstance(store, Repository) else open(store)
        self._rev = rev
        self._stored: StoredNames | None = None
        self._failed: CkptStoreError | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True for any text: it is a revision."""
        return isinstance(checkpoint_id, str | Path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another load."""
        if checkpoint_id is not None:
            self._rev = str(checkpoint_id)

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:  # noqa: ARG002
        """Return the names of all values, with the dtypes and shapes of tensors.

        torch would make an AssertionError of an error here, so `set_up_storage_reader`, which it
        calls next, raises that.
        """
        self._stored, self._failed = None, None
        try:
            self._stored = StoredNames.open(self._repo, self._rev)
        except CkptStoreError as error:
            self._failed = error
            return Metadata({})
        return self._stored.metadata()

    def set_up_storage_reader(
        self,
        metadata: Metadata,  # noqa: ARG002
        is_coordinator: bool,  # noqa: ARG002
        *args: Any,  # noqa: ARG002
        **options: Any,  # noqa: ARG002
    ) -> None:
        """Raise the error of the metadata, if there was one."""
        expect_collectives()
        if self._failed is not None:
            raise self._failed

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Have all ranks read one checkpoint, even if the branch moves. On the coordinator."""
        return [replace(plan, storage_data=self._opened.id) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what this rank wants."""
        if plan.storage_data not in (None, self._opened.id):
            planned = self._opened
            self._stored = StoredNames.open(self._repo, plan.storage_data)
            planned.check_alike(self._stored)
        self._opened.read(plan, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @property
    def _opened(self) -> StoredNames:
        if self._stored is None:
            raise InvalidInputError("The metadata has to be read first.")
        return self._stored

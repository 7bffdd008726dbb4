"""StoreWriter: the storage behind `dcp.save`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.metadata import (
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ckptstore.arrays.source import TENSOR
from ckptstore.commit.grid import grid_of
from ckptstore.commit.shards import PutShards, grids_of, is_small, put_shards
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.facts import Facts
from ckptstore.documents.names import check_ref_name
from ckptstore.documents.nodes import ArrayNode
from ckptstore.errors import InvalidInputError, NotFoundError
from ckptstore.integrations.dcp.gloo_exit import expect_collectives
from ckptstore.integrations.dcp.values import (
    Values,
    keys_of,
    looked_up,
    path_of,
    planned_arrays,
    tree_of,
)
from ckptstore.python_gc import paused_collector
from ckptstore.repository import DEFAULT_BRANCH, Repository, open

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import SupportsIndex

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.commit.committer import Begun, Committer
    from ckptstore.digest import Digest
    from ckptstore.documents.boxes import Shape
    from ckptstore.documents.nodes import Node
    from ckptstore.integrations.dcp.values import Keys
    from ckptstore.transfer.side import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """The result of one rank: nodes by keys, those of tensors left out, and the chunks it put."""

    nodes: Mapping[Keys, Node]
    put: PutShards


class StoreWriter(StorageWriter):
    """Saves to a repository: `dcp.save(state, storage_writer=StoreWriter("runs/store", step=100))`.

    Every rank makes one. `dcp.save` and `dcp.async_save` take it, the latter with a thread or a
    process. The checkpoint becomes the head of the branch once all ranks have put their part. If
    one rank fails, no checkpoint is made, and all ranks raise. `dcp.save` returns metadata, whose
    `storage_meta.checkpoint_id` is the id of the checkpoint on each rank.

    Args:
        store: A repository, or its folder or URL. A missing one is made.
        branch: The branch to commit to.
        step: As for `Repository.commit`, of which the facts of the coordinator count.
        metrics: As for `Repository.commit`.
        message: As for `Repository.commit`. When empty, the `checkpoint_id` that was passed to
            `dcp.save`.
        meta: As for `Repository.commit`.
        retry: As for `Repository.commit`.

    Raises:
        InvalidInputError: An argument is wrong.
        CkptStoreError: The repository cannot be opened.

    Example:
        >>> import ckptstore, torch
        >>> import torch.distributed.checkpoint as dcp
        >>> from ckptstore.integrations.dcp import StoreWriter
        >>> repo = ckptstore.init("memory://")
        >>> state = {"model": {"w": torch.ones(3)}, "epoch": 2}
        >>> made = dcp.save(state, storage_writer=StoreWriter(repo, step=100), no_dist=True)
        >>> made.storage_meta.checkpoint_id == repo.resolve("main").id
        True
        >>> repo.checkout()
        {'model': {'w': tensor([1., 1., 1.])}, 'epoch': 2}
    """

    def __init__(
        self,
        store: str | Path | Repository,
        *,
        branch: str = DEFAULT_BRANCH,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
        retry: bool = False,
    ) -> None:
        check_ref_name(branch, kind="branch")
        self._facts = Facts.of(step=step, metrics=metrics, message=message, meta=meta)
        self._repo = store if isinstance(store, Repository) else open(store, create=True)
        self._branch, self._retry = branch, retry
        self._begun: Begun | None = None
        self._id: Digest | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that was made, on the rank that coordinates.

        Raises:
            NotFoundError: None was made here.
        """
        if self._id is None:
            raise NotFoundError("This writer has made no checkpoint. Save first.")
        return self._repo.resolve(self._id)

    @property
    def _side(self) -> Side:
        return self._repo._side()  # noqa: SLF001

    @property
    def _committer(self) -> Committer:
        return self._repo._committer()  # noqa: SLF001

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True for any text: it is kept as a message."""
        return isinstance(checkpoint_id, str | Path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another save."""
        if checkpoint_id is not None and not self._facts.message:
            self._facts = replace(self._facts, message=str(checkpoint_id))

    def set_up_storage_writer(
        self,
        is_coordinator: bool,  # noqa: ARG002
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # by this name torch knows that it may pass more
    ) -> None:
        """Refuse a save in which the ranks know nothing of one another."""
        expect_collectives()
        if not kwargs.get("use_collectives", True):
            raise InvalidInputError(
                "StoreWriter makes one checkpoint of all ranks: pass use_collectives=True."
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Look at the branch, and choose the grid of each array. On the coordinator."""
        with paused_collector():
            return self._with_grids(plans)

    def _with_grids(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._begun = self._committer.begin(self._branch)
        head = self._begun.head
        arrays = planned_arrays(plans)
        before = grids_of(head, self._side.catalog)
        grids = {
            name: grid_of(
                array.shape,
                array.boxes,
                item_bytes=ITEM_BYTES[array.dtype],
                chunk_bytes=self._side.chunk_bytes,
                before=before.get((array.path, array.dtype, array.shape)),
            )
            for name, array in arrays.items()
            if not is_small(array.nbytes)
        }
        return [
            replace(
                plan,
                storage_data={
                    item.index.fqn: grids[item.index.fqn]
                    for item in plan.items
                    if item.index.fqn in grids
                },
            )
            for plan in plans
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Put what this rank has to save."""
        with paused_collector():
            return self._put(plan, planner)

    def _put(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        grids: Mapping[str, Shape] = plan.storage_data
        # Not the parent that the coordinator saw: a planner may hand out a plan of an earlier save.
        parent = self._committer.begin(self._branch).head
        values = Values()
        for item in plan.items:
            keys = keys_of(plan, item)
            if item.type == WriteItemType.BYTE_IO:
                values.add_object(keys, looked_up(planner, item))
            else:
                values.add_shard(keys, item, planner, grids.get(item.index.fqn))
        put = put_shards(
            values.shards,
            tied=values.tied,
            catalog=self._side.catalog,
            parent=parent,
            chunk_bytes=self._side.chunk_bytes,
        )
        done: Future[list[WriteResult]] = Future()
        saved = _Saved(nodes=values.nodes, put=put)
        done.set_result([WriteResult(MetadataIndex(""), put.new_bytes, saved)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the checkpoint. On the coordinator."""
        with paused_collector():
            self._publish(metadata, results)

    def _publish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._begun is None:
            raise InvalidInputError("A save has to begin before it can finish.")
        saved: list[_Saved] = [one.storage_data for each in results for one in each]
        nodes = {keys: node for one in saved for keys, node in one.nodes.items()}
        nodes |= {
            keys: ArrayNode(TENSOR, path_of(keys))
            for name, listed in metadata.state_dict_metadata.items()
            if isinstance(listed, TensorStorageMetadata)
            for keys in [(metadata.planner_data or {}).get(name, (name,))]
        }
        order = (metadata.planner_data or {}).values()
        known = {keys: nodes[keys] for keys in order if keys in nodes}
        self._id, _ = self._committer.commit_shards(
            tree_of(known | nodes),
            [one.put for one in saved],
            branch=self._branch,
            facts=self._facts,
            retry=self._retry,
            begun=self._begun,
        )
        metadata.storage_meta = StorageMeta(checkpoint_id=self._id)

"""Stored: a checkpoint under the names that torch.distributed.checkpoint gives to its values."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType

from ckptstore.arrays import codecs
from ckptstore.arrays.source import TENSOR
from ckptstore.checkout.boxes import Wanted, read_boxes
from ckptstore.checkout.checkout import fresh
from ckptstore.checkout.stored_state import StoredState
from ckptstore.documents.boxes import Box
from ckptstore.documents.nodes import ArrayNode, CodecNode, DictNode, ListNode, TupleNode
from ckptstore.errors import ConflictError, CorruptError, InvalidInputError, shown
from ckptstore.integrations.dcp.values import dtype_name
from ckptstore.state import tree

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from ckptstore.documents.boxes import Shape
    from ckptstore.documents.nodes import Node
    from ckptstore.integrations.dcp.values import Keys
    from ckptstore.repository import Repository
    from ckptstore.store.catalog import Catalog


class StoredNames:
    """A checkpoint as torch.distributed.checkpoint sees it: values by names joined with dots."""

    def __init__(self, stored: StoredState, catalog: Catalog) -> None:
        self.id, self._stored, self._catalog = stored.id, stored, catalog
        root = stored.root
        if not isinstance(root, DictNode):
            raise InvalidInputError(
                f"Checkpoint {self.id.short} is no dict. Only dicts can be loaded by "
                "torch.distributed.checkpoint."
            )
        self._values, self._keys = flatten_state_dict(
            {str(key): _outline(node) for key, node in root.items.items()}
        )
        self._nodes = {name: _at(root, keys) for name, keys in self._keys.items()}
        self._listed = {entry.path: entry for page in stored.pages for entry in page.entries}

    @classmethod
    def open(cls, repo: Repository, rev: str) -> StoredNames:
        """Read the structure and the pages of a checkpoint."""
        side = repo._side()  # noqa: SLF001
        with StoredState.reading(rev, side.resolver, side.catalog) as stored:
            return cls(stored, side.catalog)

    def metadata(self) -> Metadata:
        """Return the metadata that torch plans with.

        It lists each tensor as one chunk, so that a plan asks for boxes.
        """
        return Metadata(
            {
                name: self._tensor(node)
                if isinstance(node, ArrayNode) and isinstance(self._values[name], torch.Tensor)
                else BytesStorageMetadata()
                for name, node in self._nodes.items()
            },
            planner_data=self._keys,
        )

    def check_alike(self, other: StoredNames) -> None:
        """Raise ConflictError unless a plan for this checkpoint is one for another as well."""
        if self.metadata() != other.metadata():
            raise ConflictError(
                f"The revision named checkpoint {self.id.short} on this rank and "
                f"{other.id.short}, with other values, on the coordinator. Load again."
            )

    def _tensor(self, node: ArrayNode) -> TensorStorageMetadata:
        dtype, shape = self._described(node)
        return TensorStorageMetadata(
            TensorProperties(getattr(torch, dtype)),
            torch.Size(shape),
            [ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))],
        )

    def _described(self, node: ArrayNode) -> tuple[str, Shape]:
        """The dtype and shape of an array."""
        if not node.is_zarr:
            if node.first not in self._listed:
                raise CorruptError(f"The structure names {shown(node.path)}, which no page lists.")
            entry = self._listed[node.first]
            return entry.dtype, entry.shape
        array = self._stored.opener.open(node.path, node.kind)
        return array.dtype, array.shape

    def read(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Read what a plan asks for. Nothing is read before all dtypes were compared."""
        tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
        targets = [planner.resolve_tensor(item) for item in tensors]
        wanted: dict[str, list[Wanted]] = {}
        zarr = []
        for item, target in zip(tensors, targets, strict=True):
            node = self._node(item)
            dtype, _ = self._described(node)
            if dtype_name(target.dtype) != dtype:
                raise InvalidInputError(
                    f"{shown(item.storage_index.fqn)} is of dtype {dtype} in the checkpoint and of "
                    f"{dtype_name(target.dtype)} in the state to load. Convert the model, or load "
                    "into one of that dtype and convert that."
                )
            box = Box(tuple(item.storage_offsets), tuple(item.lengths))
            if node.is_zarr:
                zarr.append((node, Wanted(box, target)))
            else:
                wanted.setdefault(node.first, []).append(Wanted(box, target.detach()))
        with self._catalog.reading(self.id):
            read_boxes(self._stored.pages, wanted, objects=self._stored.objects)
            for node, (box, target) in zarr:
                array = self._stored.opener.open(node.path, node.kind)
                with torch.no_grad():
                    target.copy_(array[box.within(Box((0,) * len(box.corner), array.shape))])
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, _saved(self._value(item)))
        for item, target in zip(tensors, targets, strict=True):
            planner.commit_tensor(item, target)

    def _node(self, item: ReadItem) -> ArrayNode:
        node = self._nodes.get(item.storage_index.fqn)
        if not isinstance(node, ArrayNode):
            raise InvalidInputError(
                f"Checkpoint {self.id.short} has no tensor {shown(item.storage_index.fqn)}."
            )
        return node

    def _value(self, item: ReadItem) -> object:
        """A value that is no tensor, or that has tensors inside."""
        name = item.storage_index.fqn
        if name not in self._nodes:
            raise InvalidInputError(f"Checkpoint {self.id.short} has no {shown(name)}.")
        node = self._nodes[name]
        return self._values[name] if node is _INSIDE else fresh(self._stored, node)


class _Inside:
    """The type of `_INSIDE`."""


_INSIDE: Final[Any] = _Inside()  # the node of a value in what a codec made, which is there already


def _outline(node: Node) -> object:
    """The nested state with empty tensors, of which torch makes names as of the state itself."""
    if isinstance(node, ArrayNode):
        return torch.empty(0, device="meta") if node.kind in (TENSOR, "zarr_tensor") else None
    if isinstance(node, DictNode):
        return {key: _outline(item) for key, item in node.items.items()}
    if isinstance(node, ListNode):
        return [_outline(item) for item in node.items]
    if isinstance(node, TupleNode):
        return None  # torch does not look into it
    if isinstance(node, CodecNode):
        if any(tree.arrays(node)):
            return None
        with suppress(InvalidInputError, CorruptError):  # raised when its value is asked for
            return tree.plain(node, decode=codecs.decode)
        return None
    return node


def _at(root: Node, keys: Keys) -> Node:
    """The node where keys lead. torch makes texts of the keys of dicts."""
    node: Any = root
    for key in keys:
        if isinstance(node, DictNode):
            node = node.items[key] if key in node.items else node.items[int(key)]
        elif isinstance(node, ListNode) and isinstance(key, int):
            node = node.items[key]
        else:
            node = _INSIDE
            break
    found: Node = node
    return found


def _saved(value: object) -> io.BytesIO:
    """A value in the form in which a planner takes it, and loads it again at once."""
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data

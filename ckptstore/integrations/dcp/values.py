"""Values: what a plan of torch.distributed.checkpoint has a rank save, as shards and nodes.

Objects that are no tensors are looked up in the state. The pickles that a planner makes of them are
never read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.commit.flatten import flatten
from ckptstore.commit.shards import Shard
from ckptstore.documents.boxes import Box
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.names import escape_key
from ckptstore.documents.nodes import ArrayNode, DictNode, ListNode
from ckptstore.errors import InvalidInputError, UnsupportedValueError, shown
from ckptstore.state import tree
from ckptstore.state.paths import ROOT, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem

    from ckptstore.documents.boxes import Shape
    from ckptstore.documents.nodes import Node

    Keys = tuple[str | int, ...]


@dataclass(slots=True)
class PlannedArray:
    """An array of which ranks hold boxes."""

    path: str
    dtype: str
    shape: Shape
    boxes: list[Box]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return Box((), self.shape).size * ITEM_BYTES[self.dtype]


def planned_arrays(plans: Iterable[SavePlan]) -> dict[str, PlannedArray]:
    """The arrays that ranks are to put, by their name in the plans."""
    arrays: dict[str, PlannedArray] = {}
    for plan in plans:
        for item in plan.items:
            data = item.tensor_data
            if data is None:
                continue
            name, shape = item.index.fqn, tuple(data.size)
            path, dtype = path_of(keys_of(plan, item)), dtype_name(data.properties.dtype)
            if dtype not in ITEM_BYTES:
                raise UnsupportedValueError(
                    f"{shown(path)} has the dtype {dtype}, which a checkpoint cannot hold"
                )
            array = arrays.setdefault(name, PlannedArray(path, dtype, shape, []))
            array.boxes.append(Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes)))
    return arrays


class Values:
    """The values that a rank has to save: shards of arrays, and nodes of objects by their keys."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.tied: dict[str, str] = {}
        self.nodes: dict[Keys, Node] = {}

    def add_shard(
        self, keys: Keys, item: WriteItem, planner: SavePlanner, grid: Shape | None
    ) -> None:
        """Add a shard of a tensor, or a whole one."""
        path, data = path_of(keys), item.tensor_data
        assert data is not None, "the plan of a tensor describes it"
        tensor = planner.resolve_data(item)
        try:
            source = arrays.describe(tensor)
        except UnsupportedValueError as error:
            raise UnsupportedValueError(f"{shown(path)} {error}") from error
        assert source is not None, "it is a tensor"
        self.shards.append(
            Shard(
                path=path,
                shape=tuple(data.size),
                corner=tuple(data.chunk.offsets),
                source=replace(source, order=None),
                grid=grid,
            )
        )

    def add_object(self, keys: Keys, value: object) -> None:
        """Add a value that torch does not plan for: a plain one, or one with arrays inside."""
        base, flat = path_of(keys), flatten(value)

        def moved(path: str) -> str:
            return base if path == ROOT and isinstance(flat.root, ArrayNode) else join(base, path)

        self.nodes[keys] = tree.relabel(
            flat.root,
            lambda node: ArrayNode(
                node.kind, moved(node.path), None if node.tied is None else moved(node.tied)
            ),
        )
        self.tied |= {moved(path): moved(first) for path, first in flat.tied.items()}
        for path, source in flat.arrays.items():
            whole = replace(source, order=None)
            corner = (0,) * len(source.shape)
            self.shards.append(
                Shard(path=moved(path), shape=source.shape, corner=corner, source=whole)
            )


def keys_of(plan: SavePlan, item: WriteItem) -> Keys:
    """The keys that lead to a value in the nested state."""
    name = item.index.fqn
    keys: Keys = (plan.planner_data or {}).get(name, (name,))
    return keys


def path_of(keys: Keys) -> str:
    """The path of a value. Its keys are texts, and its positions in lists integers."""
    return "/".join(escape_key(key) if isinstance(key, str) else str(key) for key in keys)


def looked_up(planner: SavePlanner, item: WriteItem) -> object:
    """An object of the state itself, not the pickle that a planner makes of it."""
    look = getattr(planner, "lookup_object", None)
    if look is None:
        raise InvalidInputError(
            f"{shown(item.index.fqn)} is no tensor, and {type(planner).__name__} has no "
            "lookup_object, which returns it. Derive the planner from DefaultSavePlanner."
        )
    return look(item.index)


def tree_of(nodes: Mapping[Keys, Node]) -> Node:
    """The structure in which each node is where its keys lead."""
    root: dict[str | int, Any] = {}
    for keys, node in nodes.items():
        part: Any = root
        for key in keys[:-1]:
            part = part.setdefault(key, {})
            if type(part) is not dict:
                break
        if type(part) is not dict or keys[-1] in part:
            raise InvalidInputError(f"{shown(path_of(keys))} is where the state has another value.")
        part[keys[-1]] = node
    return _built(root)


def _built(part: Any) -> Node:
    """Dicts of texts as they are, dicts of positions as lists; what has no node is None there."""
    if type(part) is not dict:
        node: Node = part
        return node
    items = {key: _built(item) for key, item in part.items()}
    if items and all(isinstance(key, int) for key in items):
        return ListNode(tuple(items.get(number) for number in range(max(items) + 1)))
    return DictNode(items)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in a checkpoint."""
    return str(dtype).removeprefix("torch.")

"""Layouts: states that ranks hold in shards, and a model that is sharded in several ways."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

CHUNK_BYTES = 1 << 16

# Shapes and placements, on a mesh of one dimension, or of two if there are two placements.
TENSORS: dict[str, tuple[tuple[int, ...], torch.dtype, list[Any]]] = {
    "rows": ((1032, 64), torch.float32, [Shard(0)]),
    "columns": ((64, 1032), torch.float32, [Shard(1)]),
    "uneven rows": ((1031, 60), torch.float32, [Shard(0)]),
    "uneven columns": ((150, 607), torch.bfloat16, [Shard(1)]),
    "both": ((300, 100), torch.float32, [Replicate()]),
    "few": ((7, 12), torch.float64, [Shard(0)]),
    "one row": ((1, 40_000), torch.float32, [Shard(0)]),
    "nothing": ((0, 5), torch.float32, [Shard(0)]),
    "number": ((), torch.float32, [Replicate()]),
    "bytes": ((200_000,), torch.int8, [Shard(0)]),
    "grid": ((517, 259), torch.float32, [Shard(0), Shard(1)]),
    "twice": ((1018, 64), torch.float32, [Shard(0), Shard(0)]),
    "copies": ((260, 260), torch.float32, [Replicate(), Shard(1)]),
}


def whole(name: str) -> torch.Tensor:
    """All of a tensor."""
    shape, dtype, _ = TENSORS[name]
    size = int(torch.Size(shape).numel())
    start = sum(map(ord, name))
    return (torch.arange(start, start + size) % 251).to(dtype).reshape(shape)


def whole_state() -> dict[str, Any]:
    """The state of all ranks together."""
    return {
        "model": {name: whole(name) for name in TENSORS},
        "plain": torch.arange(30_000.0),
        "lists": [{"a": 1}, {"b": torch.ones(2), "empty": []}],
        "optimizer": {"lr": 0.5, "betas": (0.9, 0.99), "dtype": torch.bfloat16, "none": None},
        "pair": (torch.ones(3), "text"),
        "numpy": torch.arange(20_000).numpy(),
    }


@cache
def _mesh(dimensions: int) -> Any:
    world = dist.get_world_size()
    rows = 2 if world % 2 == 0 else 1
    shape = (world,) if dimensions == 1 else (rows, world // rows)
    return init_device_mesh("cpu", shape)


def sharded(name: str, tensor: torch.Tensor) -> DTensor:
    """The part of a tensor that this rank holds."""
    placements = TENSORS[name][2]
    return distribute_tensor(tensor, _mesh(len(placements)), placements, src_data_rank=None)


def state_of_rank(*, is_fresh: bool = False) -> dict[str, Any]:
    """What this rank saves, or the same with other values, into which it loads."""
    state = whole_state()
    state["model"] = {
        name: sharded(name, torch.zeros_like(value) if is_fresh else value)
        for name, value in state["model"].items()
    }
    if is_fresh:
        state["plain"] = torch.zeros(30_000)
        state["lists"] = [{"a": 0}, {"b": torch.zeros(2), "empty": None}]
        state["optimizer"] = dict.fromkeys(state["optimizer"], 0)
        state["pair"], state["numpy"] = None, None
    return state


class Model(nn.Module):
    """A model with weights of more than one chunk, and small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(60, 302)
        self.norm = nn.LayerNorm(60)
        self.down = nn.Linear(302, 60)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return result


def training(layout: str, *, steps: int) -> dict[str, Any]:
    """The state dict of a model and its optimizer, after some steps.

    layout: "plain", "fsdp", "tensor parallel" or "both".
    """
    torch.manual_seed(steps)
    model = Model()
    world = dist.get_world_size()
    if layout == "both":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
        data, tensor = mesh["data"], mesh["tensor"]
    else:
        data = tensor = init_device_mesh("cpu", (world,))
    if layout in ("tensor parallel", "both"):
        parallelize_module(model, tensor, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if layout in ("fsdp", "both"):
        for part in (model.up, model.down, model):
            fully_shard(part, mesh=data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01 * (steps + 1), foreach=False)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.rand(4, 60)).square().sum().backward()
        optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states}


def gathered(value: Any) -> Any:
    """A state with whole tensors in place of shards."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().clone()
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    return value

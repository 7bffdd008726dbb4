"""Two processes that write one folder: python -m tests.helpers.dcp_processes FOLDER."""

from __future__ import annotations

import os
import sys
import warnings

import torch

WORLD = 2


def whole(name: str) -> torch.Tensor:
    """The tensors that the processes hold in shards, or both of them whole."""
    numbers = torch.arange(7 * 12, dtype=torch.float32).reshape(7, 12)
    return {
        "rows": numbers,
        "columns": numbers + 100,
        "both": numbers + 200,
        "one row": numbers[:1].clone(),
        "bfloat16": numbers.bfloat16(),
    }[name]


def work(rank: int, folder: str, port: int) -> None:
    """What one process does."""
    warnings.simplefilter("ignore")
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from ckptstore.integrations.dcp.gloo_exit import expect_collectives

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    expect_collectives()
    mesh = init_device_mesh("cpu", (WORLD,))
    placements = {
        "rows": Shard(0),
        "columns": Shard(1),
        "both": Replicate(),
        "one row": Shard(0),
        "bfloat16": Shard(1),
    }
    state = {name: distribute_tensor(whole(name), mesh, [at]) for name, at in placements.items()}
    dcp.save(
        {"model": state, "step": 3, f"rank {rank}": torch.ones(2) * rank}, checkpoint_id=folder
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket

    import torch.multiprocessing as multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (sys.argv[1], port), nprocs=WORLD)

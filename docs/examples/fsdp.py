"""Train a model in shards (FSDP2), kill one of two ranks, and go on with one.

    torchrun --nproc-per-node 2 docs/examples/fsdp.py STORE --kill-at 12
    torchrun --nproc-per-node 1 docs/examples/fsdp.py STORE

Each rank saves its shards of one checkpoint. Another number of ranks restores it bit for bit.
"""

from __future__ import annotations

import argparse
import os
import signal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ckptstore.training import CheckpointManager

STEPS = 20


def main() -> None:
    """Train from the newest checkpoint."""
    parser = argparse.ArgumentParser(description="Train a model in shards.")
    parser.add_argument("store", help="path of the repository, which is made if it is not there")
    parser.add_argument("--kill-at", type=int, help="the step after which the last rank is killed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # with GPUs: "cpu:gloo,cuda:nccl"
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 1))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(rank)  # of the samples

    with CheckpointManager(
        options.store, save_interval_steps=5, max_to_keep=2, model=model, optimizer=optimizer
    ) as manager:
        start = manager.restore_or_initialize()
        norm = sum(w.full_tensor().square().sum().item() for w in model.parameters())
        if rank == 0:
            print(f"{world} ranks start after step {start}, weights {norm:.6f}", flush=True)
        for step in range(start + 1, STEPS + 1):
            x = torch.rand(32 // world, 64)
            loss = (model(x) - x.mean(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            manager.save(step, metrics={"loss": loss})
            if step % 5 == 0 and rank == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
            if step == options.kill_at and rank == world - 1:
                manager.wait()
                os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

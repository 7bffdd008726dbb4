"""Train in two processes with DistributedDataParallel, kill one, go on, and compare the bits.

    torchrun --nproc-per-node 2 docs/examples/ddp.py STORE
    torchrun --nproc-per-node 2 docs/examples/ddp.py STORE

Both branches are the same function called twice. Of the second, a SIGKILL ends rank 1 after step 17
of the first launch, and the second launch goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ckptstore
from ckptstore.training import CheckpointManager

STEPS = 30
KILL_AT = 17


def main() -> None:
    """Train on two branches, and compare them."""
    store = sys.argv[1]
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    is_first = "killed" not in ckptstore.open(store, create=True).branches()
    if is_first:
        train(store, "steady")
    train(store, "killed", kill_at=KILL_AT if is_first else None)
    dist.barrier()
    if dist.get_rank() == 0:
        diff = ckptstore.open(store).diff("steady", "killed")
        print(f"{diff.unchanged} arrays are equal, {len(diff.arrays)} differ", flush=True)
    dist.destroy_process_group()


def train(store: str, branch: str, *, kill_at: int | None = None) -> None:
    """Train on a branch from its newest checkpoint."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    sampler = DistributedSampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=64, sampler=sampler)
    torch.manual_seed(dist.get_rank())  # of dropout, which differs between ranks

    with CheckpointManager(
        store,
        branch=branch,
        save_interval_steps=5,
        model=model,
        optimizer=optimizer,
        loader=loader,
    ) as manager:
        step = manager.restore_or_initialize()
        print(f"{branch}: rank {dist.get_rank()} starts after step {step}", flush=True)
        while step < STEPS:
            sampler.set_epoch(step // len(loader))
            for batch, answers in loader:
                loss = cross_entropy(model(batch), answers)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                manager.save(step, metrics={"loss": loss}, force=step == STEPS)
                if step == kill_at and dist.get_rank() == 1:
                    manager.wait()
                    os.kill(os.getpid(), signal.SIGKILL)
                if step == STEPS:
                    break


if __name__ == "__main__":
    main()

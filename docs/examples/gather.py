"""From the shards of several ranks to one model.safetensors.

    python docs/examples/gather.py [--store PATH] [--ranks N]

Ranks train a model with FSDP2, and no rank ever holds all of it. Their checkpoints have whole
arrays, so one process exports the weights, and no rank has to gather them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore import formats
from ckptstore.integrations.dcp import StoreWriter

EPOCHS = 5
TRAINING_IMAGES = 1297  # of 1797


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="From sharded checkpoints to one safetensors.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    parser.add_argument("--ranks", type=int, default=2, help="processes that train (2)")
    options = parser.parse_args()
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} exists. Name a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or str(Path(folder) / "store")
        arguments = (options.ranks, store, str(Path(folder) / "group"))
        mp.start_processes(train, arguments, nprocs=options.ranks, start_method="fork")
        export(store, Path(folder) / "model.safetensors")


def network() -> nn.Sequential:
    """A small network for images of digits."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def train(rank: int, ranks: int, store: str, group: str) -> None:
    """Train on one rank, and save each epoch with the others."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = network()
    mesh = init_device_mesh("cpu", (ranks,))
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    optimizer = AdamW(model.parameters(), lr=3e-3)
    images, labels = digits()
    repo = ckptstore.open(store, create=True)
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(TRAINING_IMAGES)[:1280].split(32 * ranks):
            own = batch.chunk(ranks)[rank]
            optimizer.zero_grad()
            cross_entropy(model(images[own]), labels[own]).backward()
            optimizer.step()
        right = correct(model, images, labels)
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "epoch": epoch}
        writer = StoreWriter(repo, step=epoch, metrics={"val_acc": right})
        dcp.save(state, storage_writer=writer)
    if rank == 0:
        share = model[0].weight.to_local().numel() / model[0].weight.numel()
        print(f"rank 0 of {ranks} holds {share:.0%} of the first layer")
    # The other way: ask for whole weights. Every rank takes part, and the first gets them.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(model, options=options)
    if rank == 0:
        repo.commit({"model": gathered}, branch="gathered")
    dist.barrier()
    dist.destroy_process_group()


def export(store: str, file: Path) -> None:
    """Write the best weights to one file, and load that into a plain model."""
    repo = ckptstore.open(store)
    best = repo.resolve("main@best:val_acc")
    formats.write_file(repo.checkout(best.id, part="model", lazy=True), file)
    model = network()
    model.load_state_dict(load_file(file))
    right = correct(model, *digits())
    print(f"checkpoint of epoch {best.step}, val_acc   {best.metrics['val_acc']:.4f}")
    print(f"model.safetensors in one process   {right:.4f}")
    last = repo.diff("main", "gathered", include="model", numeric=True)
    print(f"gathered weights that differ from the last checkpoint   {len(last.arrays)}")


def correct(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the images not trained on that a model recognizes."""
    with torch.no_grad():
        found = model(images[TRAINING_IMAGES:]).argmax(dim=1)
    return float((found == labels[TRAINING_IMAGES:]).float().mean())


def digits() -> tuple[Tensor, Tensor]:
    """The images of scikit-learn's digits, and what they show."""
    found = load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)


if __name__ == "__main__":
    main()

"""Runs of Lightning's Trainer on two ranks: `python -m tests.helpers.lightning_ranks FOLDER`.

Started by torchrun. For each strategy a run is stopped and goes on, and ends as one that was not.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from ckptstore.integrations.lightning import CkptStoreCallback
from tests.helpers.equality import difference
from tests.integrations.test_lightning import Model, fit, stateful, validation

FSDP = {"process_group_backend": "gloo", "data_parallel_size": 2, "tensor_parallel_size": 1}
STRATEGIES: dict[str, Any] = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "shards": lambda: ModelParallelStrategy(**FSDP),
    "gathered": lambda: ModelParallelStrategy(**FSDP, save_distributed_checkpoint=False),
}
STEPS = 12  # of three epochs of four


class Sharded(Model):
    """The model in shards, once there is a mesh."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if self.device_mesh is not None and not hasattr(self.net[0].weight, "placements"):
            for part in (self.net[0], self.net[3], self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def run(folder: Path, name: str, **options: Any) -> Any:
    """One run, stopped or not."""
    pl.seed_everything(1, verbose=False)
    return fit(
        CkptStoreCallback(folder, every_n_train_steps=3, monitor="val_loss", save_top_k=-1),
        module=(Model if name == "ddp" else Sharded)(),
        strategy=STRATEGIES[name](),
        devices=2,
        loader=stateful,
        **options,
    )


def end(trainer: Any) -> dict[str, Any]:
    """What a run ends with on this rank. Buffers of replicas are rank 0's (ADR 0069)."""
    optimizer = trainer.optimizers[0].state_dict()["state"].values()
    return {
        "step": trainer.global_step,
        "model": {name: whole(value) for name, value in trainer.model.named_parameters()},
        "optimizer": [{key: whole(value) for key, value in state.items()} for state in optimizer],
        "rng": torch.get_rng_state(),
    }


def whole(value: Any) -> Any:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def main() -> None:
    """Run all."""
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    wholes = {}
    for name, stop in (("ddp", 7), ("ddp", 8), ("shards", 7), ("gathered", 9)):
        kind = "ddp" if name == "ddp" else "shards"
        if kind not in wholes:
            wholes[kind] = end(run(folder / f"whole-{kind}", kind))
        expected = wholes[kind]
        run(folder / f"{name}-{stop}", name, stop=stop)
        trainer = run(folder / f"{name}-{stop}", name, ckpt_path="last")
        found = end(trainer)
        assert found["step"] == STEPS, found["step"]
        assert difference(found, expected) is None, f"{name}: {difference(found, expected)}"
        trainer.test(ckpt_path="best", dataloaders=validation(), verbose=False)
        print(f"{name}-{stop} went on\n", end="", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

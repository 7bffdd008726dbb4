"""A small training run with everything that makes runs differ, to kill or to compare with.

    python -m tests.helpers.training_run STORE LOG STEPS
        [--kill-at STEP] [--kill-after-save SECONDS] [--sync] [--signal]
        [--mirror URL] [--claims FILE]

Each finished step appends a line to LOG: the step, the loss to the last bit, and one draw of each
random generator. The last line is the digest of the weights, the optimizer and all else. The ids of
the checkpoints that were durable in the mirror, by the manager's word, are appended to FILE.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import threading
import time

import numpy as np
import torch
from blake3 import blake3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ckptstore.training import CheckpointManager

ACCUMULATE = 2
BATCH = 8
SAMPLES = 48


class Shuffled:
    """A stateful loader: a new random order in each epoch, and a position in it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(SAMPLES, 12, generator=generator)
        self.y = self.x[:, :3].prod(dim=1, keepdim=True)
        self.order, self.position, self.epoch = torch.randperm(SAMPLES), 0, 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.position + BATCH > SAMPLES:
            self.order, self.position, self.epoch = torch.randperm(SAMPLES), 0, self.epoch + 1
        chosen = self.order[self.position : self.position + BATCH]
        self.position += BATCH
        noise = float(np.random.rand()) * random.random()
        return self.x[chosen] + noise, self.y[chosen]

    def state_dict(self) -> dict[str, object]:
        return {"order": self.order, "position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.order, self.position, self.epoch = state["order"], state["position"], state["epoch"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("log")
    parser.add_argument("steps", type=int)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--kill-after-save", type=float)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--signal", action="store_true")
    parser.add_argument("--mirror")
    parser.add_argument("--claims")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    ema = AveragedModel(model, use_buffers=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=5)
    loader = Shuffled()
    own = np.random.default_rng(5)
    manager = CheckpointManager(
        options.store,
        branch="run",
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        scaler=scaler,
        data=loader,
        own=own,
        max_to_keep=3,
        keep_best="loss",
        save_interval_steps=2,
        async_save=not options.sync,
        save_on_signal=options.signal,
        mirror=options.mirror,
    )

    def claim() -> None:
        if options.claims and (durable := manager.latest_durable("mirror")) is not None:
            with open(options.claims, "a") as claims:
                claims.write(f"{durable.id}\n")

    with manager:
        start = manager.restore_or_initialize()
        for step in range(start, options.steps):
            if options.signal:
                time.sleep(0.01)
            optimizer.zero_grad()
            loss = torch.zeros(())
            for _ in range(ACCUMULATE):
                x, y = loader.next()
                part = nn.functional.mse_loss(model(x), y) / ACCUMULATE
                scaler.scale(part).backward()
                loss = loss + part.detach()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            ema.update_parameters(model)
            with open(options.log, "a") as log:
                drawn = (torch.rand(()).item(), np.random.rand(), random.random(), own.random())
                bits = struct.pack("<5d", loss.item(), *drawn).hex()
                log.write(f"{step} {bits} {loader.epoch}\n")
            claim()
            if options.kill_at == step:
                os.kill(os.getpid(), signal.SIGKILL)
            saved = manager.save(step + 1, metrics={"loss": loss}, epoch=loader.epoch)
            if saved and options.kill_after_save is not None and step > options.steps // 2:
                delay = options.kill_after_save
                threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    claim()
    hasher = blake3()
    parts = tuple(part.state_dict() for part in (model, optimizer, scheduler, ema, scaler))
    for path, value in _flat(parts):
        hasher.update(path.encode())
        hasher.update(value)
    with open(options.log, "a") as log:
        log.write(f"end {hasher.hexdigest()}\n")


def _flat(value: object, path: str = "") -> list[tuple[str, bytes]]:
    if isinstance(value, torch.Tensor):
        return [(path, value.detach().numpy().tobytes())]
    if isinstance(value, dict):
        return [part for key, item in value.items() for part in _flat(item, f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [part for n, item in enumerate(value) for part in _flat(item, f"{path}/{n}")]
    return [(path, repr(value).encode())]


if __name__ == "__main__":
    main()

"""A small training loop with everything that makes a resumed run differ if it is not restored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.callback_list import CallbackList

EPOCHS, STEPS, BATCH = 5, 6, 8


class InterruptedRunError(Exception):
    """What ends a run in the middle."""


class Interrupt(Callback):
    """Ends the run after a batch or an epoch, as a kill would: no on_train_end is called."""

    turn = 9  # after all other callbacks, also those that save

    def __init__(self, epoch: int, batch: int | None = None) -> None:
        self.when = (epoch, batch)
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.when == (self.epoch, batch):
            raise InterruptedRunError

    def on_epoch_end(self, epoch, logs=None):
        if self.when == (epoch, None):
            raise InterruptedRunError


class Batches:
    """Shuffled batches with a position; the order of an epoch is drawn at its start."""

    def __init__(self) -> None:
        self.x = torch.arange(STEPS * BATCH * 4, dtype=torch.float32).reshape(-1, 4).sin()
        self.y = self.x.sum(1, keepdim=True).cos()
        self.dataset = range(len(self.x))
        self.order = torch.zeros(0, dtype=torch.int64)
        self.done = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.done in (0, STEPS):
            self.order, self.done = torch.randperm(len(self.x)), 0
        while self.done < STEPS:
            chosen = self.order[self.done * BATCH : (self.done + 1) * BATCH]
            self.done += 1
            yield self.x[chosen], self.y[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.done = state["order"], state["done"]


@dataclass
class Run:
    """The outcome of a run."""

    losses: list[tuple[int, int, float]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    slots: list[torch.Tensor] = field(default_factory=list)
    draws: tuple[float, float, float] = (0, 0, 0)
    rate: float = 0.0

    def is_same(self, other: Run) -> bool:
        return (
            all(map(torch.equal, self.weights, other.weights))
            and all(map(torch.equal, self.slots, other.slots))
            and (self.draws, self.rate) == (other.draws, other.rate)
            and self.losses == other.losses[len(other.losses) - len(self.losses) :]
        )


def train(
    callbacks: list[Any],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    steps: int | None = STEPS,
    on_start: Callable[[CallbackList], object] = lambda callbacks: None,
    on_begun: Callable[[], object] = lambda: None,
    val_loss: Callable[[int, float], float] = lambda epoch, loss: loss,
    make: Callable[..., CallbackList] = CallbackList,
) -> tuple[Run, CallbackList]:
    """Train a small model. Returns the run and its callbacks."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loader = Batches()
    all_callbacks = make(
        callbacks, model=model, optimizer=optimizer, loader=loader, epochs=epochs, steps=steps
    )
    run = Run()
    on_start(all_callbacks)
    all_callbacks.on_train_begin()
    on_begun()
    for epoch in all_callbacks.epochs():
        all_callbacks.on_epoch_begin(epoch)
        model.train()
        for batch, (x, y) in all_callbacks.batches(loader):
            all_callbacks.on_train_batch_begin(batch)
            noise = 0.01 * (float(np.random.rand()) + random.random())
            loss = (model(x) - y + noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.losses.append((epoch, batch, loss.item()))
            all_callbacks.on_train_batch_end(batch, {"loss": loss.detach()})
        model.eval()
        with torch.no_grad():
            loss = (model(loader.x) - loader.y).square().mean().item()
        all_callbacks.on_epoch_end(epoch, {"loss": loss, "val_loss": val_loss(epoch, loss)})
        run.epochs.append(epoch)
    all_callbacks.on_train_end()
    run.weights = [tensor.clone() for tensor in model.state_dict().values()]
    run.slots = [value.clone() for slot in optimizer.state.values() for value in slot.values()]
    run.draws = (torch.rand(1).item(), float(np.random.rand()), random.random())
    run.rate = optimizer.param_groups[0]["lr"]
    return run, all_callbacks

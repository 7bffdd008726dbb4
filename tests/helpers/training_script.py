"""A small training that stops and resumes, and prints JSON.

python -m tests.helpers.training_script STORE STEPS [REVISION]
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

import ckptstore
from ckptstore.digest import Digest

KINDS = ("AdamW", "SGD", "Adafactor", "RMSprop", "LBFGS")


class Training:
    """A model with BatchNorm, dropout and tied weights, augmented by three random generators."""

    def __init__(self, kind: str, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        self.rng = np.random.default_rng(seed)
        self.embed = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight
        self.model = nn.Sequential(
            self.embed, nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), self.head
        )
        options: dict[str, Any] = {"SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}
        parameters = self.model.parameters()
        self.optimizer = getattr(torch.optim, kind)(parameters, **options.get(kind, {}))
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [3, 6], gamma=0.5)
        self.step = 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": {
                "torch": torch.get_rng_state(),
                "python": random.getstate(),
                "numpy": self.rng.bit_generator.state,
            },
            "step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"]["torch"])
        random.setstate(state["rng"]["python"])
        self.rng.bit_generator.state = state["rng"]["numpy"]
        self.step = state["step"]

    def run(self, until: int) -> list[str]:
        """Train to a step. Returns the loss of each step, to the last bit."""
        losses = []
        while self.step < until:
            tokens = torch.randint(40, (12,)).roll(random.randrange(12))
            noise = torch.from_numpy(self.rng.normal(0, 0.01, (12, 40)).astype("f4"))

            def closure(tokens: torch.Tensor = tokens, noise: torch.Tensor = noise) -> torch.Tensor:
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(tokens) + noise, tokens.roll(1))
                loss.backward()
                return loss

            losses.append(self.optimizer.step(closure).item().hex())
            self.scheduler.step()
            self.step += 1
        return losses

    def fingerprint(self) -> str:
        """A digest over every weight, moment, buffer, count and generator."""
        made = ckptstore.init("memory://").commit(self.state())
        return Digest.of(repr((made._manifest.pages, made._manifest.structure)).encode())


def main(store: str, until: str, revision: str = "") -> None:
    """Run one training of each kind, each on a branch of its own, and commit where it stops."""
    torch.set_num_threads(1)
    repo = ckptstore.open(store, create=True)
    told = {}
    for kind in KINDS:
        training = Training(kind, seed=1 if revision else 0)
        if revision:
            training.run(1)  # so that there is something to replace
            training.load(repo.checkout(kind + revision))
        losses = training.run(int(until))
        repo.commit(training.state(), branch=kind, step=training.step)
        told[kind] = {"losses": losses, "fingerprint": training.fingerprint()}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

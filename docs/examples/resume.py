"""Kill a training with SIGKILL at random steps, start it again each time, and compare how it ends, bit for bit.

    python docs/examples/resume.py [--store PATH] [--seed N]

The run that is killed differs in nothing from the one that never stops: the same function, called with another branch.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import ckptstore
from ckptstore.training import CheckpointManager

STEPS = 400
SAVE_EVERY = 25
BATCH_IMAGES = 64
TRAINING_IMAGES = 1297  # of 1797
KILLS = 2


def main() -> None:
    """Run both, or be the process that is killed."""
    parser = argparse.ArgumentParser(description="Kill a training, resume it, compare the bits.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    parser.add_argument("--seed", type=int, help="choose the steps of the kills by this number")
    parser.add_argument("--train", metavar="BRANCH", help="only train, on this branch")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in the same order, so the same numbers in every process
    if options.train:
        train(options.store, options.train)
        return
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} is there already. Name a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        compare(options.store or str(Path(folder) / "store"), random.Random(options.seed))


def train(store: str, branch: str) -> None:
    """Train on a branch from wherever it stands; says each step that it did."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    images, labels = digits()
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10))
    optimizer = AdamW(model.parameters(), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    batches = TRAINING_IMAGES // BATCH_IMAGES

    with CheckpointManager(
        store,
        branch=branch,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        save_interval_steps=SAVE_EVERY,
    ) as manager:
        start = manager.restore_or_initialize()
        print(f"start {start}", flush=True)
        for step in range(start, STEPS):
            epoch, batch = divmod(step, batches)
            order = torch.randperm(TRAINING_IMAGES, generator=torch.Generator().manual_seed(epoch))
            chosen = order[batch * BATCH_IMAGES : (batch + 1) * BATCH_IMAGES]
            optimizer.zero_grad()
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            scheduler.step()
            print(f"step {step + 1} {loss.item()!r}", flush=True)
            manager.save(step + 1, metrics={"loss": loss})


def compare(store: str, chance: random.Random) -> None:
    """Train once without a stop, once with kills, and compare what both branches end with."""
    print(
        f"A network with dropout learns scikit-learn's digits in {STEPS} steps: AdamW, a cosine schedule,\n"
        f"shuffled batches, a checkpoint every {SAVE_EVERY} steps in the background.\n"
    )
    print("1. A process that nobody stops")
    steady = follow(store, "steady", kill_at=None)

    print(f"\n2. A process that is killed (SIGKILL) at {KILLS} random steps, and started again")
    killed = {}
    for kill_at in sorted(chance.sample(range(SAVE_EVERY, STEPS - SAVE_EVERY), KILLS)):
        killed |= follow(store, "killed", kill_at=kill_at)
    killed |= follow(store, "killed", kill_at=None)

    print("\n3. Compare the two branches")
    equal = sum(steady[step] == killed.get(step) for step in steady)
    print(f"   losses   {equal} of {STEPS} are the same to the last digit")
    found = ckptstore.open(store).diff("steady", "killed")
    print(f"   arrays   {found.unchanged} are the same, {len(found.arrays)} differ")
    print(f"   values   {len(found.values)} differ")
    if equal < STEPS or not found.is_empty:
        sys.exit("error: the run that was killed ended otherwise.")
    print("   Weights, AdamW's moments, the schedule and all random numbers: not one bit differs.")


def follow(store: str, branch: str, *, kill_at: int | None) -> dict[int, str]:
    """Train in a process of its own, kill it after a step if so told: the loss of each step that it did."""
    command = [sys.executable, __file__, "--store", store, "--train", branch]
    losses: dict[int, str] = {}
    end = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        start = int(process.stdout.readline().split()[1])
        for line in process.stdout:
            _, number, loss = line.split()
            losses[int(number)] = loss
            if kill_at is not None and int(number) >= kill_at:
                process.kill()
                end = f"killed when it said step {number}"
                break
    if not end and process.returncode != 0:
        sys.exit(f"error: the training ended with exit code {process.returncode}.")
    begin = f"after step {start}" if start else "at the beginning"
    print(f"   began {begin}, {end or f'ended after step {STEPS}'}")
    return losses


def digits() -> tuple[Tensor, Tensor]:
    """Images of digits to learn from, that scikit-learn ships, and what they show."""
    data = load_digits()
    pixels = torch.tensor(data.data[:TRAINING_IMAGES], dtype=torch.float32) / 16
    return pixels, torch.tensor(data.target[:TRAINING_IMAGES])


if __name__ == "__main__":
    main()

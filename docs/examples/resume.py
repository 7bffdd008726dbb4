"""Kill a training run with SIGKILL at random steps, restart it, and compare the result bit for bit.

    python docs/examples/resume.py [--store PATH] [--seed N]

Both runs are the same function called with another branch; only one of them is killed.
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
from torch.utils.data import DataLoader, TensorDataset

import ckptstore
from ckptstore.training import CheckpointManager

STEPS = 400
SAVE_EVERY = 25
BATCH_IMAGES = 64
TRAINING_IMAGES = 1297  # of 1797
KILLS = 2


def main() -> None:
    """Run the comparison, or one of its training processes."""
    parser = argparse.ArgumentParser(
        description="Kill a training run, resume it, compare the bits."
    )
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    parser.add_argument("--seed", type=int, help="random seed that chooses the steps of the kills")
    parser.add_argument("--train", metavar="BRANCH", help="only train on this branch")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # fixes the order of sums, so every process computes the same numbers
    if options.train:
        train(options.store, options.train)
        return
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} exists. Name a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        compare(options.store or str(Path(folder) / "store"), random.Random(options.seed))


def train(store: str, branch: str) -> None:
    """Train on a branch from its newest checkpoint, and print each step."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10))
    optimizer = AdamW(model.parameters(), lr=3e-3)
    scheduler = CosineAnnealingLR(optimizer, T_max=STEPS)
    loader = DataLoader(
        TensorDataset(*digits()), batch_size=BATCH_IMAGES, shuffle=True, drop_last=True
    )

    with CheckpointManager(
        store,
        branch=branch,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        save_interval_steps=SAVE_EVERY,
    ) as manager:
        step = manager.restore_or_initialize()
        print(f"start {step}", flush=True)
        while step < STEPS:
            for images, labels in loader:  # what is left of the epoch, then whole ones
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                scheduler.step()
                step += 1
                print(f"step {step} {loss.item()!r}", flush=True)
                manager.save(step, metrics={"loss": loss})
                if step == STEPS:
                    break


def compare(store: str, chance: random.Random) -> None:
    """Train once without interruption and once with kills, and compare the two branches."""
    print(
        f"A network with dropout learns scikit-learn's digits in {STEPS} steps: AdamW, a\n"
        f"cosine schedule, shuffled batches, a checkpoint every {SAVE_EVERY} steps in the\n"
        "background.\n"
    )
    print("1. A process that is not interrupted")
    steady = follow(store, "steady", kill_at=None)

    print(f"\n2. A process that is killed (SIGKILL) at {KILLS} random steps and restarted")
    killed = {}
    for kill_at in sorted(chance.sample(range(SAVE_EVERY, STEPS - SAVE_EVERY), KILLS)):
        killed |= follow(store, "killed", kill_at=kill_at)
    killed |= follow(store, "killed", kill_at=None)

    print("\n3. Compare the two branches")
    equal = sum(steady[step] == killed.get(step) for step in steady)
    print(f"   losses   {equal} of {STEPS} are equal to the last digit")
    diff = ckptstore.open(store).diff("steady", "killed")
    print(f"   arrays   {diff.unchanged} are equal, {len(diff.arrays)} differ")
    print(f"   values   {len(diff.values)} differ")
    if equal < STEPS or not diff.is_empty:
        sys.exit("error: the killed run ended differently.")
    print("   Weights, AdamW's moments, the schedule and random numbers: bit for bit equal.")


def follow(store: str, branch: str, *, kill_at: int | None) -> dict[int, str]:
    """Train in another process, killed after the step `kill_at` if given.

    Returns the loss of each step it printed.
    """
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
                end = f"killed after printing step {number}"
                break
    if not end and process.returncode != 0:
        sys.exit(f"error: training ended with exit code {process.returncode}.")
    begin = f"after step {start}" if start else "at the beginning"
    print(f"   started {begin}, {end or f'ended after step {STEPS}'}")
    return losses


def digits() -> tuple[Tensor, Tensor]:
    """The training images of the digits in scikit-learn, and their labels."""
    data = load_digits()
    pixels = torch.tensor(data.data[:TRAINING_IMAGES], dtype=torch.float32) / 16
    return pixels, torch.tensor(data.target[:TRAINING_IMAGES])


if __name__ == "__main__":
    main()

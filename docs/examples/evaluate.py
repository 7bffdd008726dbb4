"""Train, evaluate and serve in three processes, which meet in the repository alone.

    python docs/examples/evaluate.py [--store PATH]

The trainer commits without looking at the test images. The evaluator takes each checkpoint without
val_acc, and adds it with annotate. The server answers with the best checkpoint so far.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore import ExpiredError, NotFoundError
from ckptstore.training import CheckpointManager

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository

STEPS = 100
SAVE_EVERY = 10
BATCH_IMAGES = 32
PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 120


def main() -> None:
    """Start the trainer and the evaluator, and serve; or be one of them."""
    parser = argparse.ArgumentParser(description="Train, evaluate and serve.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    parser.add_argument("--part", choices=("train", "evaluate"), help="be one of the others")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.part:
        repo = ckptstore.open(options.store)
        (train if options.part == "train" else evaluate)(repo)
        return
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} exists. Name a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        repo = ckptstore.init(options.store or Path(folder) / "store")
        command = [sys.executable, __file__, "--store", repo.url, "--part"]
        with (
            subprocess.Popen([*command, "train"]) as trainer,
            subprocess.Popen([*command, "evaluate"]) as evaluator,
        ):
            serve(repo, [trainer, evaluator])
        if trainer.returncode or evaluator.returncode:
            sys.exit("error: the trainer or the evaluator failed.")
        report(repo)


def network() -> nn.Module:
    """A small network for images of digits."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(repo: Repository) -> None:
    """Train, and save without a metric. The evaluator adds it, and then the best stays."""
    pixels, labels = digits(slice(1297))
    model = network()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    with CheckpointManager(
        repo, model=model, optimizer=optimizer, max_to_keep=4, keep_best="val_acc"
    ) as manager:
        for step in range(1, STEPS + 1):
            batch = torch.randint(len(labels), (BATCH_IMAGES,))
            optimizer.zero_grad()
            cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
            if step % SAVE_EVERY == 0:
                manager.save(step)
                time.sleep(PAUSE_SECONDS)


@torch.no_grad()
def evaluate(repo: Repository) -> None:
    """Add the accuracy to each checkpoint without one, up to the last checkpoint."""
    pixels, labels = digits(slice(1297, None))
    model = network().eval()
    with repo.follow("main", unevaluated="val_acc", poll_seconds=0.02) as follower:
        while (checkpoint := follower.wait(timeout=PATIENCE_SECONDS)) is not None:
            try:
                with repo.lease(checkpoint.id, ttl="10min"):  # gc leaves it alone meanwhile
                    repo.checkout(checkpoint.id, part="model", into=model)
                    right = model(pixels).argmax(dim=1) == labels
                    repo.annotate(checkpoint.id, metrics={"val_acc": right.float().mean()})
            except ExpiredError:  # it is no longer among the newest
                continue
            if checkpoint.step == STEPS:
                return
    sys.exit("error: the last checkpoint never came.")


def serve(repo: Repository, others: list[subprocess.Popen[bytes]]) -> None:
    """Serve the best checkpoint so far, until the other processes have ended."""
    print("The server takes the best checkpoint that was evaluated so far.\n")
    model = network().eval()
    serving: Checkpoint | None = None
    while True:
        has_ended = all(other.poll() is not None for other in others)
        best = best_of(repo)
        if best is not None and (serving is None or best.id != serving.id):
            repo.checkout(best.id, part="model", into=model)
            serving = best
            print(f"   step {best.step:4}   val_acc {best.metrics['val_acc']:.1%}", flush=True)
        if has_ended:
            return
        time.sleep(0.02)


def best_of(repo: Repository) -> Checkpoint | None:
    """The best checkpoint that can be served; None before the first is evaluated."""
    try:
        best = repo.resolve("main@best:val_acc:max")
    except NotFoundError:
        return None
    return None if best.expired else best


def report(repo: Repository) -> None:
    """Print which checkpoints were evaluated, and which stay."""
    log = repo.log("main")
    evaluated = [checkpoint for checkpoint in log if "val_acc" in checkpoint.metrics]
    kept = [checkpoint for checkpoint in log if not checkpoint.expired]
    best = repo.resolve("main@best:val_acc:max")
    print(f"\n{len(evaluated)} of {len(log)} checkpoints were evaluated; gc kept {len(kept)}.")
    print(f"The best is that of step {best.step}, evaluated by {best.notes[-1].program}.")
    if best.expired:
        sys.exit("error: the best checkpoint expired.")


def digits(part: slice) -> tuple[Tensor, Tensor]:
    """Some of the images of digits in scikit-learn, and their labels."""
    data = load_digits()
    pixels = torch.tensor(data.images[part], dtype=torch.float32) / 16
    return pixels.flatten(1), torch.tensor(data.target[part])


if __name__ == "__main__":
    main()

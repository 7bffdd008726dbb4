"""Train in one process and serve in another, which follows the branch and never mixes checkpoints.

    python docs/examples/serve.py [--store PATH]

The trainer commits every few steps, with gc after each commit. The model of the server stays in
place; updates read the changed chunks into it while it answers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from blake3 import blake3
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore.training import CheckpointManager

if TYPE_CHECKING:
    from ckptstore import Follower, Repository

STEPS = 160
SAVE_EVERY = 10
BATCH_IMAGES = 32
PAUSE_SECONDS = 0.02  # between two batches of the stream
QUERY_IMAGES = 32
LAST_SECONDS = 0.2  # how long the last version is served


def main() -> None:
    """Start the trainer and serve; or, with --train, train."""
    parser = argparse.ArgumentParser(description="Serve a model while it is trained.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    parser.add_argument("--train", action="store_true", help="train, in an existing store")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.train:
        train(options.store)
        return
    if options.store and Path(options.store).exists():
        parser.error(f"{options.store} exists. Name a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        repo = ckptstore.init(options.store or Path(folder) / "store")
        command = [sys.executable, __file__, "--train", "--store", repo.url]
        with subprocess.Popen(command) as trainer:
            served, tally = serve(repo, trainer)
        if trainer.returncode != 0:
            sys.exit(f"error: the trainer ended with exit code {trainer.returncode}.")
        report(repo, served, tally)


class Network(nn.Module):
    """A large body, which is trained first, and a small head, which continues to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        """The score of each digit for each image."""
        return self.head(self.body(pixels))


def train(store: str) -> None:
    """Learn the digits, then let the head adapt to digits shifted by one pixel."""
    pixels, labels = digits(slice(1297), shifted=False)
    model = Network()
    learn(model, AdamW(model.parameters(), lr=1e-3), pixels, labels, steps=60)
    model.body.requires_grad_(requires_grad=False)
    optimizer = AdamW(model.head.parameters(), lr=3e-4)
    pixels, labels = digits(slice(1297), shifted=True)
    with CheckpointManager(store, model=model, optimizer=optimizer, max_to_keep=2) as manager:
        for step in range(0, STEPS + 1, SAVE_EVERY):
            manager.save(step, meta={"fingerprint": fingerprint(model)})
            if step < STEPS:
                learn(model, optimizer, pixels, labels, steps=SAVE_EVERY, pause=PAUSE_SECONDS)


def learn(
    model: Network,
    optimizer: AdamW,
    pixels: Tensor,
    labels: Tensor,
    *,
    steps: int,
    pause: float = 0,
) -> None:
    """Train on this many random batches."""
    for _ in range(steps):
        batch = torch.randint(len(labels), (BATCH_IMAGES,))
        optimizer.zero_grad()
        cross_entropy(model(pixels[batch]), labels[batch]).backward()
        optimizer.step()
        time.sleep(pause)


def serve(
    repo: Repository, trainer: subprocess.Popen[bytes]
) -> tuple[int, dict[str, Counter[str]]]:
    """Follow the trainer to its end.

    Returns how many versions were served, and by fingerprint of the weights how many answers each
    gave and how many were right.
    """
    model = Network().eval()
    tally: dict[str, Counter[str]] = {}
    ended = threading.Event()
    served, current = 0, None
    print(
        f"The trainer commits every {SAVE_EVERY} steps; the server follows and answers meanwhile.\n"
    )
    with repo.follow("main", poll_seconds=0.02) as follower:
        while current is None or current.step < STEPS:
            if follower.wait(timeout=1) is None:
                if trainer.poll() not in (None, 0):
                    break
                continue
            update = follower.update(model)
            if update is None or update.checkpoint == current:
                continue
            current, served = update.checkpoint, served + 1
            share = update.read_bytes / update.whole_bytes
            print(
                f"   step {current.step:4}   {len(update.changed)} arrays changed, "
                f"read {update.read_bytes / 1e6:5.2f} MB of {update.whole_bytes / 1e6:.2f} MB "
                f"({share:.0%})"
            )
            if served == 1:  # there is something to serve
                clients = threading.Thread(target=answer, args=(model, follower, tally, ended))
                clients.start()
        time.sleep(LAST_SECONDS)
        ended.set()
        if served:
            clients.join()
    return served, tally


@torch.no_grad()
def answer(
    model: Network, follower: Follower, tally: dict[str, Counter[str]], ended: threading.Event
) -> None:
    """Answer queries until the end, and count which weights gave each answer."""
    pixels, labels = digits(slice(1297, None), shifted=True)
    while not ended.is_set():
        query = torch.randint(len(labels), (QUERY_IMAGES,))
        with follower.reading():
            digits_seen = model(pixels[query]).argmax(dim=1)
            weights = fingerprint(model)
        counts = tally.setdefault(weights, Counter())
        counts["answers"] += QUERY_IMAGES
        counts["right"] += int((digits_seen == labels[query]).sum())


def report(repo: Repository, served: int, tally: dict[str, Counter[str]]) -> None:
    """Print which checkpoint each answer came from; the log includes expired ones."""
    log = repo.log("main")
    steps = {checkpoint.meta["fingerprint"]: checkpoint.step for checkpoint in log}
    answers = sum(counts["answers"] for counts in tally.values())
    whole = sum(counts["answers"] for weights, counts in tally.items() if weights in steps)
    live = sum(not checkpoint.expired for checkpoint in log)
    print(f"\n{served} of {len(log)} committed versions were served; gc kept {live}.")
    print(f"{answers} answers, {whole} of them from the weights of one whole checkpoint:")
    for weights, counts in tally.items():
        share = counts["right"] / counts["answers"]
        print(
            f"   step {steps.get(weights)!s:>4}   {counts['answers']:6} answers, {share:.0%} right"
        )
    if whole != answers:
        sys.exit("error: some answers came from weights that were never committed.")


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights in memory."""
    hasher = blake3()
    for value in model.state_dict().values():
        hasher.update(value.numpy().tobytes())
    return hasher.hexdigest(length=8)


def digits(part: slice, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Some of the images of digits in scikit-learn, and their labels."""
    data = load_digits()
    pixels = torch.tensor(data.images[part], dtype=torch.float32) / 16
    return pixels.roll(int(shifted), dims=2).flatten(1), torch.tensor(data.target[part])


if __name__ == "__main__":
    main()

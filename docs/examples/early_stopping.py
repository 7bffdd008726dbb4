"""Stop when the validation loss stops improving, and restore the best weights from the store.

    python docs/examples/early_stopping.py [--store PATH]

The callbacks have the names of Keras; here they run in a plain PyTorch loop.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

import ckptstore
from ckptstore.training.callbacks import CallbackList, EarlyStopping, ModelCheckpoint

EPOCHS = 100
PATIENCE = 5
BATCH_IMAGES = 32
TRAINING_IMAGES = 400  # of 1797: few, so that the network soon overfits


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Early stopping, with the best weights restored.")
    parser.add_argument("--store", help="where to make the repository (default: a temporary one)")
    store = parser.parse_args().store
    if store and Path(store).exists():
        parser.error(f"{store} exists. Name a new folder.")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # fixes the order of sums, so every run computes the same numbers
    with tempfile.TemporaryDirectory() as folder:
        store = store or str(Path(folder) / "store")
        model, val_losses = train(store)
        report(store, model, val_losses)


def train(store: str) -> tuple[nn.Module, list[float]]:
    """Train until the validation loss has not improved for PATIENCE epochs.

    Returns the model and the validation losses.
    """
    images, labels = digits()
    model = network()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    val_losses = []
    callbacks = CallbackList(
        [
            ModelCheckpoint(store, monitor="val_loss", save_best_only=True),
            EarlyStopping(monitor="val_loss", patience=PATIENCE, restore_best_weights=True),
        ],
        model=model,
        optimizer=optimizer,
        epochs=EPOCHS,
    )
    print(
        f"A network learns {TRAINING_IMAGES} of scikit-learn's digits for at most {EPOCHS} epochs, "
        f"or until\nval_loss has not improved for {PATIENCE}. Every new best epoch is saved.\n"
    )
    callbacks.on_train_begin()
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        total = 0.0
        for batch, chosen in callbacks.batches(torch.randperm(TRAINING_IMAGES).split(BATCH_IMAGES)):
            callbacks.on_train_batch_begin(batch)
            optimizer.zero_grad()
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            callbacks.on_train_batch_end(batch, {"loss": loss.item()})
            total += loss.item() * len(chosen)
        logs = {"loss": total / TRAINING_IMAGES, **evaluate(model)}
        is_best = all(logs["val_loss"] < earlier for earlier in val_losses)
        val_losses.append(logs["val_loss"])
        callbacks.on_epoch_end(epoch, logs)
        print(
            f"   epoch {epoch + 1:3}   loss {logs['loss']:.4f}   val_loss {logs['val_loss']:.4f}   "
            f"val_acc {logs['val_acc']:.4f}{'   best so far' if is_best else ''}"
        )
    callbacks.on_train_end()
    return model, val_losses


def report(store: str, model: nn.Module, val_losses: list[float]) -> None:
    """Compare the restored model and the best checkpoint with the losses seen in training."""
    repo = ckptstore.open(store)
    best = repo.resolve("main@best:val_loss")
    print(f"\nStopped after epoch {len(val_losses)}. val_loss in full precision:")
    new = network()
    ckptstore.load_weights(new, repo, "main@best:val_loss")
    in_memory, from_store = evaluate(model)["val_loss"], evaluate(new)["val_loss"]
    for what, loss in (
        (f"epoch {len(val_losses):3}, the last", val_losses[-1]),
        (f"epoch {best.message.split()[-1]:>3}, the best", min(val_losses)),
        ("this model now", in_memory),
        (f"checkpoint {best.id.short} of main", from_store),
    ):
        print(f"   {what:27}   {loss!r}")
    if not in_memory == from_store == best.metrics["val_loss"] == min(val_losses):
        sys.exit("error: these should be equal.")

    print("\nThe store contains:")
    total = 0
    for branch, what in (("main", "the training state"), ("best-weights", "the weights alone")):
        live = [checkpoint for checkpoint in repo.log(branch) if not checkpoint.expired]
        array_bytes = sum(checkpoint.array_bytes for checkpoint in live)
        print(
            f"   {branch:14} {len(live)} checkpoints, {what}: {array_bytes / 1e6:.2f} MB of arrays"
        )
        total += array_bytes
    stored = repo.usage().stored_bytes
    print(
        f"   together       {stored / 1e6:.2f} MB instead of {total / 1e6:.2f}: "
        f"identical arrays are stored once"
    )


def network() -> nn.Sequential:
    """A network that classifies the digit in an image."""
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


@torch.no_grad()
def evaluate(model: nn.Module) -> dict[str, float]:
    """The loss and accuracy on the validation images."""
    images, labels = digits(validation=True)
    scores = model(images)
    accuracy = (scores.argmax(dim=1) == labels).float().mean().item()
    return {"val_loss": cross_entropy(scores, labels).item(), "val_acc": accuracy}


def digits(*, validation: bool = False) -> tuple[Tensor, Tensor]:
    """Some of the images of digits in scikit-learn, and their labels."""
    data = load_digits()
    part = slice(TRAINING_IMAGES, None) if validation else slice(TRAINING_IMAGES)
    return torch.tensor(data.data[part], dtype=torch.float32) / 16, torch.tensor(data.target[part])


if __name__ == "__main__":
    main()

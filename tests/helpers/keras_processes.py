"""A program with Keras that is killed and started again, and that loads what another backend saved.

    python -m tests.helpers.keras_processes first FOLDER [arguments of pytest]
    python -m tests.helpers.keras_processes second FOLDER BRANCH

The first trains a model, then trains it again and stops halfway, and then runs tests. The second is
a new process: it goes on with the training and compares the end of both. KERAS_BACKEND chooses the
backend.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.integrations.keras import tracked
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from tests.helpers.training_loop import Interrupt, InterruptedRunError

EPOCHS = 4
X = np.sin(np.arange(48 * 4, dtype="float32")).reshape(48, 4)
Y = np.cos(X.sum(1, keepdims=True))
PARTS = ["model/**", "optimizer/**"]


def make(seed: int) -> Any:
    """A model with everything that has a state."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.AdamW(0.01), loss="mse", metrics=["mae"])
    return model


def numbers(model: Any) -> list[np.ndarray]:
    """The values of all variables of a model and its optimizer."""
    variables = (*model.variables, *model.optimizer.variables)
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]


def train(model: Any, folder: Path, *others: Any) -> dict[str, list[float]]:
    """Train a model as the same program does each time."""
    keras.utils.set_random_seed(1)
    callbacks = [
        BackupAndRestore(folder / "store"),
        ModelCheckpoint(folder / "store", monitor="loss", save_best_only=True),
        EarlyStopping("mae", patience=9, restore_best_weights=False),
        ReduceLROnPlateau("loss", patience=0, factor=0.5, min_delta=0.2),
        *others,
    ]
    fitted = model.fit(X, Y, batch_size=8, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    history: dict[str, list[float]] = fitted.history
    return history


def drawn() -> np.ndarray:
    """The next random numbers of the process."""
    return np.array([random.random(), np.random.rand(), float(keras.random.uniform(()))])


def first(folder: Path, arguments: list[str]) -> int:
    """Train to the end, train again and stop halfway, and run tests."""
    model = make(0)
    history = train(model, folder / "whole")
    end = [*numbers(model), drawn(), np.array(history["loss"])]
    np.savez(folder / "whole.npz", *end)
    with pytest.raises(InterruptedRunError):
        train(make(0), folder / "killed", Interrupt(1))
    return int(pytest.main(arguments))


def second(folder: Path, branch: str) -> None:
    """Go on with the training, and load what another backend saved."""
    model = make(7)
    history = train(model, folder / "killed")
    found = [*numbers(model), drawn(), np.array(history["loss"])]
    with np.load(folder / "whole.npz") as whole:
        expected = [whole[name] for name in whole.files]
    expected[-1] = expected[-1][2:]
    assert_equal(found, expected)
    load(folder, branch)


def load(folder: Path, branch: str) -> None:
    """Load a checkpoint of another backend in every way, and save it again."""
    store = folder / "others"
    with np.load(folder / "others.npz") as saved:
        expected = [saved[name] for name in saved.files]
    restored, *models = (make(seed) for seed in (3, 4, 5, 6))
    manager = CheckpointManager(store, branch=branch, **tracked(restored), async_save=False)
    manager.restore(branch, include=PARTS)
    assert_equal(numbers(restored), expected)
    weights = len(restored.variables)
    repository = ckptstore.open(store)
    assert not ckptstore.load_weights(models[0], repository, branch)
    assert not repository.checkout(branch, into=models[1], part="model")
    repository.follow(branch).update(models[2])
    for model in models:
        assert_equal(numbers(model)[:weights], expected[:weights])
    restored.fit(X, Y, epochs=1, verbose=0)
    own = str(keras.backend.backend())
    manager = CheckpointManager(store, branch=own, **tracked(models[0]), async_save=False)
    manager.restore(branch, include=PARTS)
    manager.save(1)


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Fail unless all numbers are the same. Integers may have another width."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype or {one.dtype.kind, other.dtype.kind} <= {"i", "u"}
        assert np.array_equal(one, other), (one, other)


def save(folder: Path) -> None:
    """Save what other backends load, with the backend of this process."""
    model = make(2)
    model.fit(X, Y, epochs=1, verbose=0)
    own = str(keras.backend.backend())
    with CheckpointManager(folder / "others", branch=own, **tracked(model)) as manager:
        manager.save(1)
    np.savez(folder / "others.npz", *numbers(model))


if __name__ == "__main__":
    if sys.argv[1] == "first":
        sys.exit(first(Path(sys.argv[2]), sys.argv[3:]))
    second(Path(sys.argv[2]), sys.argv[3])

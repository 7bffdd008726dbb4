"""A Keras model in a manager, in load_weights and in a follower: by its stable names, not by those of its module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import ckptstore
from ckptstore.integrations.keras import tracked
from ckptstore.training import CheckpointManager


def made(seed: int) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(300),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    return model


def values(model: Any) -> list[torch.Tensor]:
    return [variable.value.detach().clone() for variable in model.variables]


def test_a_manager_restores_another_model_of_the_same_layers() -> None:
    one, other = made(1), made(2)
    found = CheckpointManager("memory://", model=one)
    found.save(1)
    found.wait()
    CheckpointManager(found.repository, model=other).restore()
    assert all(map(torch.equal, values(one), values(other)))
    assert any(path.endswith("kernel") for path in (a.path for a in found.latest.arrays))


def test_weights_are_loaded_and_followed() -> None:
    trained, served, loaded = made(1), made(2), made(3)
    trained.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    found = CheckpointManager("memory://", **tracked(trained), async_save=False)
    found.save(1)
    follower = found.repository.follow()
    assert follower.update(served).read_bytes > 0
    ckptstore.load_weights(loaded, found.repository)
    for model in (served, loaded):
        assert all(map(torch.equal, values(trained), values(model)))
    trained.layers[-1].bias.assign([5.0, 6.0])
    found.save(2)
    assert follower.update(served).read_bytes == 8
    assert all(map(torch.equal, values(trained), values(served)))

"""A Keras model in a manager, in load_weights and in a follower, by stable names.

test_keras_backends runs this on the other backends.
"""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import CheckoutMismatchError, InvalidInputError
from ckptstore.integrations.keras import KerasTraining, OptimizerState, tracked
from ckptstore.training import CheckpointManager, disk, frameworks
from ckptstore.training.tracked import stateful
from ckptstore.training.training import Training, training_of

# Keras 3.15 hands torch parameters to numpy 2 in a way that numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def values(model: Any) -> list[Any]:
    return [numbers(variable) for variable in model.variables]


def numbers(variable: Any) -> Any:
    import keras

    return np.array(keras.ops.convert_to_numpy(variable.value))


def test_a_manager_restores_another_model_of_the_same_layers() -> None:
    one, other = made(1), made(2)
    found = CheckpointManager("memory://", model=one)
    found.save(1)
    found.wait()
    CheckpointManager(found.repository, model=other).restore()
    assert all(map(np.array_equal, values(one), values(other)))
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
        assert all(map(np.array_equal, values(trained), values(model)))
    trained.layers[-1].bias.assign([5.0, 6.0])
    found.save(2)
    assert follower.update(served).read_bytes == 8
    assert all(map(np.array_equal, values(trained), values(served)))


def is_jax() -> bool:
    import keras

    return str(keras.backend.backend()) == "jax"


def saved(model: Any) -> ckptstore.Repository:
    manager = CheckpointManager("memory://", **tracked(model), async_save=False)
    manager.save(1)
    return manager.repository


def test_a_checkout_fills_a_model_as_load_weights_does() -> None:
    trained, by_checkout, by_load = made(1), made(2), made(3)
    repo = saved(trained)
    places = [id(variable.value) for variable in by_checkout.variables]
    assert repo.checkout(part="model", into=by_checkout) == ckptstore.load_weights(by_load, repo)
    for model in (by_checkout, by_load):
        assert all(map(np.array_equal, values(trained), values(model)))
    if not is_jax():  # whose arrays cannot be changed
        assert [id(variable.value) for variable in by_checkout.variables] == places


def test_a_checkout_fills_a_model_inside_a_nested_structure() -> None:
    trained, filled = made(1), made(2)
    trained.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    repo = saved(trained)
    target = {"model": filled, "optimizer": OptimizerState(filled)}
    assert not repo.checkout(into=target, exclude=["progress/**", "rng/**"])
    assert all(map(np.array_equal, values(trained), values(filled)))
    for one, other in zip(trained.optimizer.variables, filled.optimizer.variables, strict=True):
        assert np.array_equal(numbers(one), numbers(other))
    follower, followed = repo.follow(), {"model": made(3)}
    follower.update(followed, include="model/**")
    assert all(map(np.array_equal, values(trained), values(followed["model"])))
    assert follower.update(followed, include="model/**").read_bytes == 0
    follower.forget(followed)
    assert follower.update(followed, include="model/**").read_bytes > 0


def test_a_model_that_does_not_fit_is_left_as_it_was_and_every_difference_is_named() -> None:
    import keras

    repo = saved(made(1))
    other = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(200), keras.layers.Dense(2, name="head")]
    )
    before = values(other)
    expected = {
        "missing": ("model/002.head.kernel", "model/003.head.bias"),
        "unexpected": (
            "model/002.batch_normalization.gamma",
            "model/003.batch_normalization.beta",
            "model/004.batch_normalization.moving_mean",
            "model/005.batch_normalization.moving_variance",
            "model/006.dense.kernel",
            "model/007.dense.bias",
        ),
        "mismatched": (
            "model/000.dense.kernel (checkpoint: float32 [4, 300], destination: float32 [4, 200])",
            "model/001.dense.bias (checkpoint: float32 [300], destination: float32 [200])",
        ),
    }
    whole = [
        lambda **options: ckptstore.load_weights(other, repo, **options),
        lambda **options: repo.checkout(part="model", into=other, **options),
    ]
    chosen = [lambda **options: repo.checkout(into={"model": other}, include="model/**", **options)]
    for call in (*whole, *chosen):
        with pytest.raises(CheckoutMismatchError, match="Nothing was changed") as error:
            call()
        found = error.value.incompatible
        assert found.missing == (expected["missing"] if call in whole else ())
        assert found.unexpected == expected["unexpected"]
        assert found.mismatched == expected["mismatched"]
        assert all(map(np.array_equal, before, values(other)))
        with pytest.raises(CheckoutMismatchError, match="Nothing in the checkpoint fits"):
            call(strict=False)
        assert all(map(np.array_equal, before, values(other)))


def test_what_fits_is_filled_when_the_rest_need_not() -> None:
    trained, other = made(1), made(2)
    other.add(type(other.layers[-1])(3))
    repo = saved(trained)
    with pytest.warns(UserWarning, match="2 missing"):
        found = repo.checkout(part="model", into=other, strict=False)
    assert found.missing == ("model/008.dense.kernel", "model/009.dense.bias")
    assert all(map(np.array_equal, values(trained), values(other)))
    assert len(values(other)) == 10


def test_a_model_fits_nothing_but_names() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"model": [torch.ones(2)]})
    for call in (
        lambda: ckptstore.load_weights(made(1), repo),
        lambda: repo.checkout(into={"model": made(1)}),
        lambda: repo.follow().update(made(1)),
    ):
        with pytest.raises(CheckoutMismatchError, match="checkpoint: list, destination: module"):
            call()


def test_the_room_for_a_model_is_known_before_its_optimizer_is_built() -> None:
    import keras

    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100, use_bias=False)])
    for optimizer, slots in (
        (keras.optimizers.AdamW(), 2),
        (keras.optimizers.SGD(), 0),
        (keras.optimizers.SGD(momentum=0.9), 1),
    ):
        model.compile(optimizer, "mse")
        assert disk._state_bytes(tracked(model)) == (1 + slots) * 40_000
        assert not optimizer.built
        optimizer.build(model.trainable_variables)
        built = disk._state_bytes(tracked(model))
        assert (1 + slots) * 40_000 < built < (1 + slots) * 40_000 + 100
    seen = keras.Variable(np.zeros(5, "f"))
    assert disk._state_bytes({"seen": stateful("seen", seen)}) == 20


def test_a_module_of_another_framework_is_still_a_plain_training() -> None:
    made(1)
    assert type(training_of(torch.nn.Linear(1, 1))) is Training
    assert type(training_of(made(1))) is KerasTraining


@pytest.mark.slow
def test_a_model_whose_integration_is_not_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the source is on the path: as a torch module it would be saved in part."""
    monkeypatch.setattr(frameworks, "_registered", [])
    monkeypatch.setattr(frameworks, "_waiting", dict)
    with pytest.raises(InvalidInputError, match=r"import ckptstore\.integrations\.keras"):
        training_of(made(1))
    assert type(training_of(torch.nn.Linear(2, 1))) is Training


def test_the_integration_is_imported_when_a_model_of_its_framework_is_met() -> None:
    """In a program that has imported Keras, and not before."""
    code = """
import sys
from ckptstore.training.training import training_of
import torch
training_of(torch.nn.Linear(1, 1))
assert "keras" not in sys.modules and "ckptstore.integrations" not in sys.modules
import keras
training = training_of(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
print(type(training).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["KerasTraining"]


def _named(*names: str) -> Any:
    import keras

    inputs = keras.Input((4,))
    made = [keras.layers.Dense(4, name=name)(inputs) for name in names]
    model = keras.Model(inputs, keras.layers.Add(name="both")(made))
    model.compile("adam", "mse")
    return model


def test_layers_of_one_shape_that_changed_places_are_an_error_and_nothing_changes() -> None:
    saved, other = _named("query", "value"), _named("value", "query")
    state, before = tracked(saved)["model"].state_dict(), values(other)
    with pytest.raises(CheckoutMismatchError, match=r"query.*value"):
        tracked(other)["model"].load_state_dict(state)
    assert all(map(np.array_equal, values(other), before))
    again = _named("query", "value")
    tracked(again)["model"].load_state_dict(state)
    assert all(map(np.array_equal, values(again), values(saved)))


def test_an_optimizer_is_tracked_beside_its_model_as_tracked_does() -> None:
    """As tf.train.Checkpoint(model=model, optimizer=optimizer) has them."""
    one, other, third = made(1), made(2), made(3)
    one.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    named = CheckpointManager("memory://", model=one, optimizer=one.optimizer, async_save=False)
    named.save(1)
    again = CheckpointManager(named.repository, optimizer=other.optimizer, model=other)
    again.restore()
    CheckpointManager(named.repository, **tracked(third)).restore()
    for model in (other, third):
        for name in ("variables", "optimizer.variables"):
            pairs = zip(attrgetter(name)(one), attrgetter(name)(model), strict=True)
            assert all(np.array_equal(numbers(a), numbers(b)) for a, b in pairs)


def test_an_optimizer_finds_the_model_whose_weights_it_has() -> None:
    import keras

    left, right = _named("left", "a"), _named("right", "b")
    right.optimizer.build(right.trainable_variables)
    manager = CheckpointManager("memory://", left=left, right=right, optimizer=right.optimizer)
    manager.save(1)
    manager.wait()
    names = [item.path for item in manager.latest.arrays if item.path.startswith("optimizer/")]
    assert "optimizer/002.right.kernel.momentum" in names
    alone = keras.optimizers.Adam()
    with pytest.raises(InvalidInputError, match=r"not built yet. Call optimizer\.build"):
        CheckpointManager("memory://", optimizer=alone, async_save=False).save(1)
    alone.build(left.trainable_variables)
    manager = CheckpointManager("memory://", optimizer=alone, async_save=False)
    manager.save(1)
    manager.restore()


def test_variables_and_generators_are_tracked() -> None:
    import keras

    def objects(number: int) -> dict[str, Any]:
        variable = keras.Variable(np.full((2, 3), number, "float32"))
        seeds = keras.random.SeedGenerator(number)
        count = keras.Variable(number, dtype="int32", trainable=False)
        return {"count": count, "table": variable, "seeds": seeds}

    one, other = objects(3), objects(4)
    keras.random.normal((2,), seed=one["seeds"])
    with CheckpointManager("memory://", **one, async_save=False) as manager:
        manager.save(1)
        CheckpointManager(manager.repository, **other).restore()
        assert int(other["count"]) == 3
        assert np.array_equal(numbers(other["table"]), numbers(one["table"]))
        assert np.array_equal(numbers(other["seeds"].state), numbers(one["seeds"].state))
        misfit = {**other, "table": keras.Variable(np.zeros((3, 3), "float32"))}
        other["count"].assign(9)
        with pytest.raises(CheckoutMismatchError, match=r"float32 \[2, 3\] there.*\[3, 3\] here"):
            CheckpointManager(manager.repository, **misfit).restore()
        assert int(other["count"]) == 9
    repo = ckptstore.init("memory://")
    repo.commit({"table": one["table"]})
    assert np.array_equal(np.asarray(repo.checkout()["table"]), numbers(one["table"]))
    other["table"].assign(np.zeros((2, 3)))
    repo.checkout(into={"table": other["table"]})
    assert np.array_equal(numbers(other["table"]), numbers(one["table"]))


def test_integers_of_another_backend_are_converted_or_refused() -> None:
    """Seeds are int64 with TensorFlow, uint32 with JAX and int32 with torch."""
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
    name, seeds = "000.seed_generator.seed_generator_state", np.array([5, 7], "uint8")
    repo = ckptstore.init("memory://")
    repo.commit({"model": {name: seeds}})
    for call in (
        lambda: repo.checkout(into=model, part="model"),
        lambda: repo.follow().update(model),
        lambda: CheckpointManager(repo, model=model).restore(),
    ):
        model.variables[0].assign([1, 2])
        call()
        assert numbers(model.variables[0]).tolist() == [5, 7]
    repo.commit({"model": {name: np.array([1 << 63, 1], "uint64")}})
    for call in (
        lambda: repo.checkout(into=model, part="model"),
        lambda: repo.follow().update(model),
    ):
        with pytest.raises(CheckoutMismatchError, match=r"cannot hold \[9223372036854775808, 1\]"):
            call()
        assert numbers(model.variables[0]).tolist() == [5, 7]

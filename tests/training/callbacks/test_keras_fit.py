"""Our callbacks in Keras' own fit. tests/integrations/test_keras_backends.py runs parts of this on
the other backends.
"""

from __future__ import annotations

import json
import random

import keras
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ckptstore
from ckptstore.integrations.keras import KerasTraining, ModelState, OptimizerState, tracked
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ProgbarLogger,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
)
from tests.helpers.training_loop import Interrupt, InterruptedRunError

# Keras 3.15 hands torch parameters to numpy 2 in a way that numpy warns of.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

EPOCHS = 5
X = np.sin(np.arange(48 * 4, dtype="float32")).reshape(48, 4)
Y = np.cos(X.sum(1, keepdims=True))


def seeded(seed: int) -> None:
    keras.utils.set_random_seed(seed)
    torch.manual_seed(seed)  # which Keras does with the torch backend only


def again_seeded(seed: int) -> int:
    """A seed for the program that goes on: with TensorFlow, shuffling needs that of the first."""
    return 1 if keras.backend.backend() == "tensorflow" else seed


def make(seed: int = 0, optimizer: str = "AdamW", width: int = 8):
    seeded(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dropout(0.2, seed=3),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=getattr(keras.optimizers, optimizer)(0.01), loss="mse", metrics=["mae"])
    return model


def fit(model, callbacks, epochs=EPOCHS, seed=None, **kwargs):
    if seed is not None:
        seeded(seed)
    arguments = {"batch_size": 8, "shuffle": True, "verbose": 0, "validation_data": (X, Y)}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **{**arguments, **kwargs})


def numbers(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


def values(model):
    return [numbers(v) for v in (*model.variables, *model.optimizer.variables)]


def state(model):
    drawn = [torch.rand(1).item(), float(np.random.rand()), random.random()]
    drawn.append(float(keras.random.uniform(())))
    return values(model), drawn


def is_equal(one, other) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def is_same(one, other) -> bool:
    return is_equal(one[0], other[0]) and one[1:] == other[1:]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_an_interrupted_fit_ends_the_same_bit_for_bit(tmp_path, optimizer, epoch):
    model = make(optimizer=optimizer)
    whole_history = fit(model, [], seed=1).history
    whole = state(model)
    with pytest.raises(InterruptedRunError):
        fit(make(optimizer=optimizer), [BackupAndRestore(tmp_path), Interrupt(epoch)], seed=1)
    again = make(seed=77, optimizer=optimizer)
    history = fit(again, [BackupAndRestore(tmp_path)], seed=again_seeded(78)).history
    assert is_same(state(again), whole)
    for name, values in history.items():
        assert values == whole_history[name][epoch + 1 :]
    assert ckptstore.open(tmp_path).branches() == {}
    assert len(fit(again, [], epochs=2).history["loss"]) == 2  # the next fit begins at 0


SERIES = (8.0, 5.0, 5.5, 4.95, 5.2, 4.99, 4.96, 3.0, 2.0)


class Given(Callback):
    """Puts a metric of our choice among the others."""

    def on_epoch_end(self, epoch, logs=None):
        logs["given"] = SERIES[epoch]


def stateful(path):
    """Callbacks with state; those that save come first, where Keras calls them too early."""
    return [
        Given(),
        BackupAndRestore(path / "store", branch="run"),
        ModelCheckpoint(path / "store", save_best_only=True, monitor="given", mode="min"),
        CSVLogger(path / "log.csv"),
        EarlyStopping("given", mode="min", patience=4, min_delta=1 / 8, restore_best_weights=True),
        ReduceLROnPlateau("given", mode="min", patience=1, cooldown=1, factor=0.5),
        LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        TensorBoard(path / "logs", update_freq=2),
    ]


@pytest.mark.parametrize("epoch", [0, 2, 3, 5])
def test_the_states_of_callbacks_are_restored_in_fit(tmp_path, epoch):
    (tmp_path / "whole").mkdir()
    model = make()
    whole_history = fit(model, stateful(tmp_path / "whole"), epochs=9, seed=1).history
    whole = state(model)
    assert len(whole_history["loss"]) == 6
    with pytest.raises(InterruptedRunError):
        fit(make(), [*stateful(tmp_path), Interrupt(epoch)], epochs=9, seed=1)
    again = make(seed=5)
    history = fit(again, stateful(tmp_path), epochs=9, seed=again_seeded(6)).history
    assert is_same(state(again), whole)
    for name, values in history.items():
        assert values == whole_history[name][epoch + 1 :]
    assert (tmp_path / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    saved = [
        [(found.message, found.step) for found in ckptstore.open(path / "store").log("main")]
        for path in (tmp_path / "whole", tmp_path)
    ]
    assert saved[1] == saved[0]


def test_a_backup_every_few_batches_repeats_the_interrupted_epoch(tmp_path):
    with pytest.raises(InterruptedRunError):
        fit(make(), [BackupAndRestore(tmp_path, save_freq=4), Interrupt(1, 3)], seed=1)
    held = ckptstore.open(tmp_path).resolve("backup")
    assert held.step == 8
    again = make(seed=5)
    callback = BackupAndRestore(tmp_path, save_freq=4)
    assert len(fit(again, [callback]).history["loss"]) == EPOCHS - 1


def test_a_checkpoint_of_fit_goes_into_a_model_outside_it(tmp_path):
    model = make()
    fit(model, [ModelCheckpoint(tmp_path, message="{epoch} {mae:.2f}")], epochs=2)
    again = make(seed=9)
    assert not again.optimizer.built
    CheckpointManager(tmp_path, **tracked(again)).restore(
        "main", include=["model/**", "optimizer/**"]
    )
    assert is_equal(values(model), values(again))
    assert [found.step for found in ckptstore.open(tmp_path).log()] == [12, 6]


def test_names_are_readable_and_the_same_for_every_copy():
    first, second = make(), make()
    fit(first, [], epochs=1)
    assert list(ModelState(first).state_dict()) == list(ModelState(second).state_dict())
    assert list(OptimizerState(first).state_dict()) == list(OptimizerState(second).state_dict())
    assert list(ModelState(first).state_dict())[:6] == [
        "000.dense.kernel",
        "001.dense.bias",
        "002.batch_normalization.gamma",
        "003.batch_normalization.beta",
        "004.batch_normalization.moving_mean",
        "005.batch_normalization.moving_variance",
    ]
    assert list(OptimizerState(first).state_dict())[:4] == [
        "000.iteration",
        "001.learning_rate",
        "002.dense.kernel.momentum",
        "003.dense.kernel.velocity",
    ]


def test_variables_of_one_name_and_nested_models_are_kept_apart(tmp_path):
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.one = self.add_weight(shape=(4,), name="w", initializer="random_normal")
            self.two = self.add_weight(shape=(4,), name="w", initializer="random_normal")

        def call(self, x):
            return x * self.one + self.two

    def nested(seed):
        seeded(seed)
        inner = keras.Sequential([keras.Input((4,)), Twice(), keras.layers.Dense(4)])
        model = keras.Sequential([keras.Input((4,)), inner, Twice(), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        return model

    model, again = nested(1), nested(2)
    fit(model, [ModelCheckpoint(tmp_path)], epochs=1)
    CheckpointManager(tmp_path, **tracked(again)).restore(
        "main", include=["model/**", "optimizer/**"]
    )
    assert is_equal(values(model), values(again))
    names = [name.split(".", 1)[1] for name in ModelState(model).state_dict()]
    assert names.count("twice.w") == 4


def test_a_loss_scaling_optimizer_is_restored(tmp_path):
    def scaled(seed):
        model = make(seed)
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01)), "mse")
        return model

    model = scaled(0)
    fit(model, [], seed=1)
    whole = state(model)
    with pytest.raises(InterruptedRunError):
        fit(scaled(0), [BackupAndRestore(tmp_path), Interrupt(2)], seed=1)
    again = scaled(3)
    fit(again, [BackupAndRestore(tmp_path)], seed=again_seeded(4))
    assert is_same(state(again), whole)


def test_another_architecture_is_an_error_that_lists_the_differences(tmp_path):
    with pytest.raises(InterruptedRunError):
        fit(make(), [BackupAndRestore(tmp_path), Interrupt(1)])
    with pytest.raises(
        ckptstore.InvalidInputError, match=r"000\.dense\.kernel .*\[4, 8\] there.*\[4, 9\]"
    ):
        fit(make(width=9), [BackupAndRestore(tmp_path)])


def test_early_stopping_restores_the_best_weights_from_the_store(tmp_path):
    class Remember(Callback):
        weights: list

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                self.weights = [numbers(weight) for weight in self.model.weights]

    model, remember = make(), Remember()
    stopping = EarlyStopping("given", 0, 2, mode="min", restore_best_weights=True, store=tmp_path)
    history = fit(model, [Given(), remember, stopping], epochs=9)
    assert len(history.history["loss"]) == 6
    assert stopping.best_epoch == 3
    for weight, value in zip(model.weights, remember.weights, strict=True):
        assert np.array_equal(numbers(weight), value)
    assert list(ckptstore.open(tmp_path).branches()) == ["best-weights"]


def test_terminating_keeps_the_backup_and_names_the_last_good_checkpoint(tmp_path, capsys):
    class Poison(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.layers[-1].bias.assign([np.nan])  # TensorFlow's relu makes 0 of it

    callbacks = [ModelCheckpoint(tmp_path), BackupAndRestore(tmp_path), Poison(), TerminateOnNaN()]
    history = fit(make(), callbacks)
    assert len(history.history["loss"]) == 3
    repository = ckptstore.open(tmp_path)
    assert [found.step for found in repository.log("main")] == [12, 6]
    good = repository.resolve("backup")
    assert f"last good checkpoint is {good.id.short} (step 12) on backup" in capsys.readouterr().err


def test_metrics_known_to_keras_decide_the_mode(tmp_path):
    model = make()
    model.compile(
        optimizer="sgd",
        loss="mse",
        metrics=["mae", keras.metrics.CosineSimilarity(name="odd")],
    )
    fit(model, [], epochs=1)
    assert KerasTraining(model).directions == {"mae": "min", "odd": "max"}


def test_tensorboard_gets_layers_weights_and_embeddings(tmp_path):
    seeded(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Embedding(7, 3, name="words"), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    options = {"histogram_freq": 1, "embeddings_freq": 1, "write_images": True, "update_freq": 3}
    board = TensorBoard(tmp_path / "logs", **options, profile_batch=2)
    model.fit(
        np.ones((12, 4), "int32"),
        np.ones((12, 4, 1)),
        batch_size=4,
        epochs=2,
        verbose=0,
        validation_split=0.5,
        callbacks=[board, ModelCheckpoint(tmp_path / "store")],
    )
    found = EventAccumulator(str(tmp_path / "logs" / "train"), size_guidance={"tensors": 0})
    found.Reload()
    tags = found.Tags()
    assert found.SummaryMetadata("keras").plugin_data.plugin_name == "graph_keras_model"
    layers = found.Tensors("keras")[0].tensor_proto.string_val[0]
    assert json.loads(layers)["config"]["layers"]
    assert "words.embeddings/histogram" in tags["histograms"]
    assert "dense.kernel/image" in tags["images"]
    assert {"epoch_loss", "epoch_learning_rate", "batch_loss", "checkpoint/loss"} <= set(
        tags["scalars"]
    )
    assert len(found.Tensors("checkpoint/text_summary")) == 2
    assert "words" in (tmp_path / "logs" / "train" / "projector_config.pbtxt").read_text()
    assert list((tmp_path / "logs" / "train").glob("*.pt.trace.json"))


def test_a_subclassed_model_is_backed_up_and_logged(tmp_path):
    """TensorFlow builds it at the first batch, which is too late for a backup to be restored."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(6)
            self.drop = keras.layers.Dropout(0.4)
            self.out = keras.layers.Dense(1)

        def call(self, x, training=None):
            return self.out(self.drop(self.hidden(x), training=training))

        def get_config(self):
            raise RuntimeError("no")

    def own(seed):
        seeded(seed)
        model = Own()
        model.compile(keras.optimizers.Adam(0.01), "mse")
        if keras.backend.backend() == "tensorflow":
            model(X[:1])
        return model

    def callbacks():
        return [
            BackupAndRestore(tmp_path / "store"),
            TensorBoard(tmp_path / "logs", histogram_freq=1),
        ]

    model = own(0)
    fit(model, [], seed=1)
    whole = state(model)
    with pytest.raises(InterruptedRunError):
        fit(own(0), [*callbacks(), Interrupt(2)], seed=1)
    again = own(3)
    fit(again, callbacks(), seed=again_seeded(4))
    assert is_same(state(again), whole)


def test_our_progress_bar_takes_the_place_of_keras_own(capsys):
    fit(make(), [ProgbarLogger(verbose=1)], epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    assert "val_mae: " in lines[0]
    fit(make(), [ProgbarLogger()], epochs=1)
    assert capsys.readouterr().err == ""


def test_the_same_callbacks_serve_a_second_fit(tmp_path):
    model = make()
    callbacks = [ModelCheckpoint(tmp_path), EarlyStopping("given", mode="min", patience=0), Given()]
    callbacks.insert(0, callbacks.pop())
    fit(model, callbacks)
    first = len(ckptstore.open(tmp_path).log())
    fit(model, callbacks)
    assert len(ckptstore.open(tmp_path).log()) == 2 * first
    assert callbacks[1].training is callbacks[2].training
    fit(model, [other := ModelCheckpoint(tmp_path)], epochs=1)
    assert other.training.callbacks == [other]


def test_the_code_of_articles_runs_as_it_stands(tmp_path, monkeypatch):
    """Only the import is another: patterns of files, callbacks and the way to go on."""
    monkeypatch.chdir(tmp_path)
    checkpoint_path = "training_1/cp-{epoch:04d}.weights.h5"
    cp_callback = ModelCheckpoint(filepath=checkpoint_path, save_weights_only=True, verbose=0)
    best = ModelCheckpoint(
        "ckpt/weights-{epoch:02d}-{val_loss:.2f}.keras",
        monitor="val_loss",
        save_best_only=True,
        mode="min",
    )
    stop = EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True)
    plateau = ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=5, min_lr=0.001)
    model, ends = make(), []

    class Ends(Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(values(self.model)[: len(self.model.variables)])

    callbacks = [cp_callback, best, BackupAndRestore("backup"), stop, plateau, Ends()]
    losses = fit(model, callbacks, epochs=3).history["val_loss"]
    repository = ckptstore.open("training_1/.ckptstore")
    assert [*repository.tags()] == [f"cp-{epoch:04d}.weights.h5" for epoch in (1, 2, 3)]
    for epoch in (1, 2, 3):
        again = make(seed=9)
        ckptstore.load_weights(again, repository, checkpoint_path.format(epoch=epoch)[11:])
        assert is_equal(values(again)[: len(again.variables)], ends[epoch - 1])
    found = min(losses)
    name = f"weights-{losses.index(found) + 1:02d}-{found:.2f}.keras"
    assert ckptstore.open("ckpt/.ckptstore").resolve(name).metrics["val_loss"] == found
    assert (
        sorted(path.name for path in tmp_path.rglob("*") if path.suffix in (".h5", ".keras")) == []
    )

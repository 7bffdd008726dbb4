"""The same metrics in, the same decisions out: our callbacks beside those of Keras, driven through
the same hooks.

Metrics are multiples of 1/64: Keras compares in float32 and we in float64, which differ only for
numbers that float32 cannot tell apart. A series never begins with NaN: with Keras no later metric
is better than that one (see test_monitor).
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.integrations.keras import KerasTraining
from ckptstore.training import callbacks as ours
from ckptstore.training.callbacks.callback_list import CallbackList
from ckptstore.training.callbacks.monitor import direction
from ckptstore.training.training import remember

# Keras 3.15 hands torch parameters to numpy 2 in a way that numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SERIES = 300  # of loops that only set the model
many = settings(max_examples=settings().max_examples * 5)  # no file is touched

numbers = st.integers(-6, 6).map(lambda number: number / 64) | st.integers(-1, 2).map(float)
metrics = numbers | st.sampled_from([math.nan, math.inf, -math.inf, None])
modes = st.sampled_from(["min", "max", "auto"])
monitors = st.sampled_from(["loss", "val_loss", "mae", "val_mae", "auc", "val_auc", "accuracy"])
deltas = st.sampled_from([0, 1 / 64, -1 / 64, 1 / 8, 1])


@st.composite
def series(draw: st.DrawFn, start: int = 0) -> list[float | None]:
    """A metric by epoch; the first one that is looked at is a number or missing."""
    found = draw(st.lists(metrics, max_size=14))
    first = next((place for place in range(start, len(found)) if found[place] is not None), None)
    if first is not None and math.isnan(found[first] or 0):
        found[first] = draw(numbers)
    return found


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A Keras model that knows its metrics; it never trains."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", "accuracy", keras.metrics.AUC(name="auc")])
    model.fit(np.zeros((2, 2)), np.zeros((2, 1)), verbose=0)
    return model


class StandIn:
    """What Keras' callbacks ask of a model: metrics, weights and files."""

    def __init__(self, compiled: Any) -> None:
        self.metrics = compiled.metrics
        self.optimizer = compiled.optimizer
        self.stop_training = False
        self.weights = -1
        self.saved: list[str] = []

    def get_weights(self) -> int:
        return self.weights

    def set_weights(self, weights: int) -> None:
        self.weights = weights

    def save(self, path: str, overwrite: bool) -> None:
        self.saved.append(Path(path).stem)

    def save_weights(self, filepath: str, overwrite: bool) -> None:
        self.saved.append(Path(filepath).name)


class Weights(torch.nn.Module):
    """A model whose one weight says in which epoch it is."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = torch.nn.Parameter(torch.tensor(-1.0), requires_grad=False)


def knowing(compiled: Any, callbacks: list[Any], model: Any, **tracked: Any) -> CallbackList:
    """A list over a plain model for which metrics are known as Keras knows them."""
    made = CallbackList(callbacks, model=model, **tracked)
    directions = KerasTraining(compiled).directions
    kind = type(made.training)
    made.training.__class__ = type("Knowing", (kind,), {"directions": directions})
    remember(model, made.training)
    return made


def run(
    callback: Any,
    model: Any,
    name: str,
    values: list[float | None],
    *,
    begin: Callable[[int], object] = lambda epoch: None,
    stops: Callable[[], bool],
) -> int:
    """Drive a callback (or a list) through epochs; how many were done."""
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # metrics that are not there
        callback.on_train_begin()
        for epoch, value in enumerate(values):
            begin(epoch)
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, {"other": 1.0} | ({} if value is None else {name: value}))
            done += 1
            if stops():
                break
        callback.on_train_end()
    return done


@st.composite
def stopping(draw: st.DrawFn) -> tuple[dict[str, Any], list[float | None]]:
    start = draw(st.integers(0, 4))
    arguments = {
        "monitor": draw(monitors),
        "mode": draw(modes),
        "patience": draw(st.integers(0, 4)),
        "min_delta": draw(deltas),
        "baseline": draw(st.none() | numbers),
        "start_from_epoch": start,
    }
    return arguments, draw(series(start))


@many
@given(stopping())
def test_early_stopping(compiled, case):
    arguments, values = case
    theirs, model = keras.callbacks.EarlyStopping(**arguments), StandIn(compiled)
    theirs.set_model(model)
    name = arguments["monitor"]
    expected = run(theirs, model, name, values, stops=lambda: model.stop_training)
    mine = ours.EarlyStopping(**arguments)
    callbacks = knowing(compiled, [mine], Weights())
    found = run(callbacks, None, name, values, stops=lambda: callbacks.stop_training)
    assert found == expected
    assert (mine.wait, mine.stopped_epoch) == (theirs.wait, theirs.stopped_epoch)
    assert (mine.best, mine.best_epoch) == (theirs.best, theirs.best_epoch)


@settings(max_examples=max(SERIES, settings().max_examples))
@given(stopping(), st.booleans())
def test_early_stopping_of_a_loop_that_only_sets_the_model(compiled, case, restores):
    """As in loops without a CallbackList, which look at `model.stop_training`."""
    arguments, values = case
    name = arguments["monitor"]
    arguments |= {"restore_best_weights": restores}
    theirs, model = keras.callbacks.EarlyStopping(**arguments), StandIn(compiled)
    mine, weights = ours.EarlyStopping(**arguments, store="memory://"), Weights()
    theirs.set_model(model)
    mine.set_model(weights)
    expected = run(
        theirs,
        model,
        name,
        values,
        begin=lambda epoch: setattr(model, "weights", epoch),
        stops=lambda: model.stop_training,
    )
    found = run(
        mine,
        weights,
        name,
        values,
        begin=lambda epoch: weights.epoch.fill_(epoch),
        stops=lambda: getattr(weights, "stop_training", False),
    )
    assert found == expected
    assert getattr(weights, "stop_training", False) == model.stop_training
    assert (mine.wait, mine.stopped_epoch) == (theirs.wait, theirs.stopped_epoch)
    assert (mine.best, mine.best_epoch) == (theirs.best, theirs.best_epoch)
    assert weights.epoch.item() == (model.weights if values else -1)


@given(stopping())
def test_early_stopping_restores_the_same_epoch(compiled, case):
    arguments, values = case
    theirs, model = (
        keras.callbacks.EarlyStopping(**arguments, restore_best_weights=True),
        StandIn(compiled),
    )
    theirs.set_model(model)
    name = arguments["monitor"]

    def begin(epoch: int) -> None:
        model.weights = epoch

    expected = run(theirs, model, name, values, begin=begin, stops=lambda: model.stop_training)
    mine = ours.EarlyStopping(**arguments, restore_best_weights=True, store="memory://")
    weights = Weights()
    callbacks = knowing(compiled, [mine], weights)
    found = run(
        callbacks,
        None,
        name,
        values,
        begin=lambda epoch: weights.epoch.fill_(epoch),
        stops=lambda: callbacks.stop_training,
    )
    assert found == expected
    assert weights.epoch.item() == model.weights


@given(
    monitor=monitors,
    mode=modes,
    best_only=st.booleans(),
    weights_only=st.booleans(),
    threshold=st.none() | numbers,
    values=series(),
)
def test_model_checkpoint_at_epochs(
    compiled, monitor, mode, best_only, weights_only, threshold, values
):
    ending = "weights.h5" if weights_only else "keras"
    arguments: dict[str, Any] = {
        "monitor": monitor,
        "mode": mode,
        "save_best_only": best_only,
        "save_weights_only": weights_only,
        "initial_value_threshold": threshold,
    }
    theirs, model = (
        keras.callbacks.ModelCheckpoint(f"e{{epoch:03d}}.{ending}", **arguments),
        StandIn(compiled),
    )
    theirs.set_model(model)
    run(theirs, model, monitor, values, stops=lambda: False)
    repository = ckptstore.init("memory://")
    mine = ours.ModelCheckpoint(repository, message="e{epoch:03d}", **arguments)
    callbacks = knowing(compiled, [mine], Weights())
    run(callbacks, None, monitor, values, stops=lambda: False)
    saved = [found.message for found in reversed(repository.log())]
    assert saved == [name.removesuffix(".weights.h5") for name in model.saved]
    assert mine.best == theirs.best


@given(
    every=st.integers(1, 7),
    at_once=st.sampled_from([1, 1, 2, 3]),
    best_only=st.booleans(),
    mode=st.sampled_from(["min", "max"]),
    epochs=st.lists(st.lists(numbers, min_size=1, max_size=7), max_size=4),
)
def test_model_checkpoint_at_batches(compiled, every, at_once, best_only, mode, epochs):
    arguments: dict[str, Any] = {
        "monitor": "loss",
        "mode": mode,
        "save_best_only": best_only,
        "save_freq": every,
    }
    theirs, model = (
        keras.callbacks.ModelCheckpoint("e{epoch}b{batch}.keras", **arguments),
        StandIn(compiled),
    )
    theirs.set_model(model)
    theirs._set_monitor_op()  # else Keras fails if two saves precede the first epoch's end
    repository = ckptstore.init("memory://")
    mine = ours.ModelCheckpoint(repository, message="e{epoch}b{batch}", **arguments)
    callbacks = CallbackList([mine], model=Weights())
    for callback in (theirs, callbacks):
        callback.on_train_begin()
        for epoch, values in enumerate(epochs):
            callback.on_epoch_begin(epoch)
            for batch, value in enumerate(values):
                if (batch + 1) % at_once == 0 or batch + 1 == len(values):  # steps_per_execution
                    callback.on_train_batch_end(batch, {"loss": value})
            callback.on_epoch_end(epoch, {"loss": values[-1]})
        callback.on_train_end()
    assert [found.message for found in reversed(repository.log())] == model.saved


@given(every=st.integers(1, 7) | st.just("epoch"), epochs=st.lists(st.integers(1, 7), max_size=4))
def test_backup_and_restore_backs_up_at_the_same_moments(compiled, tmp_path_factory, every, epochs):
    theirs = keras.callbacks.BackupAndRestore(
        str(tmp_path_factory.mktemp("backup")), save_freq=every, delete_checkpoint=False
    )
    model = StandIn(compiled)
    model.built = True
    theirs.set_model(model)
    repository = ckptstore.init("memory://")
    mine = ours.BackupAndRestore(repository, save_freq=every, delete_checkpoint=False)
    callbacks = CallbackList([mine], model=Weights())
    steps = itertools.count(1)
    at: list[int] = []
    seen = 0
    for callback in (theirs, callbacks):
        callback.on_train_begin()
        for epoch, count in enumerate(epochs):
            callback.on_epoch_begin(epoch)
            for batch in range(count):
                callback.on_train_batch_end(batch, {})
                if callback is theirs:
                    step = next(steps)
                    if len(model.saved) > seen:
                        at.append(step)
                        seen = len(model.saved)
            callback.on_epoch_end(epoch, {})
            if len(model.saved) > seen:
                at.append(sum(epochs[: epoch + 1]))
                seen = len(model.saved)
        callback.on_train_end()
    assert [found.step for found in reversed(repository.log())] == at


def plain_optimizer(rate: float) -> torch.optim.Optimizer:
    """Its learning rate is in float32, as Keras' is."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(rate)
    return optimizer


class Rates(ours.Callback):
    """Notes the learning rate, and what the logs say of it, at each epoch's end."""

    def __init__(self, rate: Callable[[], float]) -> None:
        self.rate = rate
        self.found: list[tuple[float, Any]] = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append((self.rate(), logs.get("learning_rate")))


@given(
    monitor=monitors,
    mode=modes,
    factor=st.sampled_from([0.1, 0.5, 0.9, 0.0]),
    patience=st.integers(0, 3),
    min_delta=deltas,
    cooldown=st.integers(0, 3),
    min_lr=st.sampled_from([0.0, 0.1, 0.3, 0.001, 2.0]),
    rate=st.sampled_from([1.0, 0.1, 0.3]),
    values=series(),
)
@many
def test_reduce_lr_on_plateau(compiled, rate, values, **arguments):
    theirs, model = keras.callbacks.ReduceLROnPlateau(**arguments), StandIn(compiled)
    compiled.optimizer.learning_rate = rate
    their_rates = Rates(lambda: float(compiled.optimizer.learning_rate))
    theirs.set_model(model)
    name = arguments["monitor"]
    pair = SimpleNamespace(
        on_train_begin=theirs.on_train_begin,
        on_epoch_begin=theirs.on_epoch_begin,
        on_epoch_end=lambda epoch, logs: (
            theirs.on_epoch_end(epoch, logs),
            their_rates.on_epoch_end(epoch, logs),
        ),
        on_train_end=theirs.on_train_end,
    )
    run(pair, model, name, values, stops=lambda: False)
    mine, optimizer = ours.ReduceLROnPlateau(**arguments), plain_optimizer(rate)
    my_rates = Rates(lambda: float(optimizer.param_groups[0]["lr"]))
    callbacks = knowing(compiled, [mine, my_rates], Weights(), optimizer=optimizer)
    run(callbacks, None, name, values, stops=lambda: False)
    assert my_rates.found == their_rates.found
    assert (mine.best, mine.wait, mine.cooldown_counter) == (
        theirs.best,
        theirs.wait,
        theirs.cooldown_counter,
    )


@pytest.mark.parametrize(
    "schedule",
    [
        lambda epoch, rate: rate * 0.9,
        lambda epoch: 0.1 / (epoch + 1),
        lambda epoch, rate: np.float32(0.5),
    ],
    ids=["of epoch and rate", "of epoch", "numpy"],
)
def test_learning_rate_scheduler(compiled, schedule):
    theirs, model = keras.callbacks.LearningRateScheduler(schedule), StandIn(compiled)
    compiled.optimizer.learning_rate = 0.3
    theirs.set_model(model)
    optimizer = plain_optimizer(0.3)
    callbacks = CallbackList(
        [ours.LearningRateScheduler(schedule)], model=Weights(), optimizer=optimizer
    )
    callbacks.on_train_begin()
    for epoch in range(5):
        theirs.on_epoch_begin(epoch)
        callbacks.on_epoch_begin(epoch)
        assert float(optimizer.param_groups[0]["lr"]) == float(compiled.optimizer.learning_rate)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["loss", "mae", "val_loss", "auc", "note"]),
            st.floats()
            | st.integers()
            | st.sampled_from(["a", 'b,"c', ""])
            | st.lists(st.integers(), max_size=3)
            | st.lists(st.floats(width=32), max_size=3).map(np.array),
        ),
        max_size=4,
    ),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
    st.sampled_from([None, b"", b"epoch,loss\r\n0,1.0\r\n", b"\n"]),
)
def test_csv_logger(tmp_path_factory, epochs, separator, append, held):
    folder = tmp_path_factory.mktemp("csv")
    for name in ("theirs", "mine"):
        if held is not None:
            (folder / name).write_bytes(held)
    theirs = keras.callbacks.CSVLogger(str(folder / "theirs"), separator, append)
    mine = ours.CSVLogger(folder / "mine", separator, append)
    for callback in (theirs, mine):
        callback.on_train_begin()
        for epoch, logs in enumerate(epochs):
            given_logs = {
                name: float(value) if isinstance(value, int) else value
                for name, value in logs.items()
            }
            callback.on_epoch_end(epoch, given_logs)
        callback.on_train_end()
    assert (folder / "mine").read_bytes() == (folder / "theirs").read_bytes()


@settings(max_examples=max(SERIES, settings().max_examples))
@given(st.lists(st.floats(width=32) | st.none(), max_size=6))
def test_terminate_on_nan(compiled, losses):
    def stops(callback: Any, model: Any, is_stopped: Callable[[], bool]) -> int | None:
        callback.on_train_begin()
        for batch, loss in enumerate(losses):
            callback.on_train_batch_end(batch, {} if loss is None else {"loss": loss})
            if is_stopped():
                return batch
        return None

    theirs, model = keras.callbacks.TerminateOnNaN(), StandIn(compiled)
    theirs.set_model(model)
    expected = stops(theirs, model, lambda: model.stop_training)
    callbacks = CallbackList([ours.TerminateOnNaN()])
    assert stops(callbacks, None, lambda: callbacks.stop_training) == expected
    mine, weights = ours.TerminateOnNaN(), Weights()
    mine.set_model(weights)  # as in loops without a CallbackList
    assert stops(mine, weights, lambda: getattr(weights, "stop_training", False)) == expected


@pytest.mark.parametrize("as_json", [False, True])
def test_remote_monitor(server, as_json):
    arguments = {
        "path": "/here/",
        "field": "what",
        "headers": {"X-Key": "k"},
        "send_as_json": as_json,
    }
    logs = {"loss": 0.5, "val_loss": np.float32(0.25), "note": "a b&c"}
    for kind in (keras.callbacks.RemoteMonitor, ours.RemoteMonitor):
        kind(server.root, **arguments).on_epoch_end(3, logs)
    theirs, mine = server.received
    if as_json:
        assert json.loads(mine[3]) == json.loads(theirs[3])
        assert mine[:3] == theirs[:3]
    else:
        assert mine == theirs


def test_lambda_callback():
    calls: dict[str, list[Any]] = {"theirs": [], "mine": []}
    hooks = [
        f"on_{what}_{when}"
        for what in (
            "train",
            "epoch",
            "train_batch",
            "test",
            "test_batch",
            "predict",
            "predict_batch",
        )
        for when in ("begin", "end")
    ]
    for name, kind in (("theirs", keras.callbacks.LambdaCallback), ("mine", ours.LambdaCallback)):

        def note(hook: str, name: str = name) -> Callable[..., None]:
            if "epoch" in hook or "batch" in hook:
                return lambda place, logs: calls[name].append((hook, place, logs))
            return lambda logs: calls[name].append((hook, logs))

        callback = kind(**{hook: note(hook) for hook in hooks})
        for number, hook in enumerate(hooks):
            if "batch" in hook:
                getattr(callback, hook)(number, logs={"a": 1})
            elif "epoch" in hook:
                getattr(callback, hook)(number, {"a": 1})
            else:
                getattr(callback, hook)({"a": 1})
    assert calls["mine"] == calls["theirs"]
    assert len(calls["mine"]) == len(hooks)


def test_every_metric_of_keras_has_the_direction_that_keras_gives_it():
    from keras.src.trainers.compile_utils import MetricsList

    found = []
    for name in dir(keras.metrics):
        kind = getattr(keras.metrics, name)
        if not isinstance(kind, type) or not issubclass(kind, keras.metrics.Metric):
            continue
        try:
            metric = kind()
        except TypeError:  # it has arguments of its own
            continue
        if not hasattr(metric, "_direction"):
            continue
        model = SimpleNamespace(metrics=[MetricsList([metric])])
        monitor = keras.callbacks.EarlyStopping(f"val_{metric.name}")
        monitor.set_model(model)
        monitor._set_monitor_op()
        known = KerasTraining.directions.fget(SimpleNamespace(model=model))
        expected = "min" if monitor.monitor_op is keras.ops.less else "max"
        assert direction(f"val_{metric.name}", "auto", known) == expected
        found.append(name)
    assert len(found) > 20


def test_names_arguments_and_defaults_are_those_of_keras():
    import inspect

    extra = {
        "EarlyStopping": ["store"],
        "BackupAndRestore": ["branch"],
        "RemoteMonitor": ["timeout"],
        "ProgbarLogger": ["verbose"],
        "TensorBoard": ["hparams"],
    }
    for name in (
        "EarlyStopping",
        "RemoteMonitor",
        "LearningRateScheduler",
        "ReduceLROnPlateau",
        "TerminateOnNaN",
        "CSVLogger",
        "ProgbarLogger",
        "TensorBoard",
        "BackupAndRestore",
        "LambdaCallback",
    ):
        theirs = [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(
                getattr(keras.callbacks, name, None) or _progbar()
            ).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        mine = [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(getattr(ours, name)).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        if name == "BackupAndRestore":
            theirs[0] = ("store", inspect.Parameter.empty)
        assert mine[: len(theirs)] == theirs
        assert [parameter for parameter, _ in mine[len(theirs) :]] == extra.get(name, [])
    theirs = list(inspect.signature(keras.callbacks.ModelCheckpoint).parameters.values())[1:]
    mine = list(inspect.signature(ours.ModelCheckpoint).parameters.values())
    assert mine[0].name == "store"
    assert [(one.name, one.default) for one in mine[1 : len(theirs) + 1]] == [
        (one.name, one.default) for one in theirs
    ]
    others = mine[len(theirs) + 1 :]
    assert [one.name for one in others] == ["filepath", "branch", "message", "period"]
    assert {one.kind for one in others} == {inspect.Parameter.KEYWORD_ONLY}


def _progbar() -> Any:
    from keras.src.callbacks.progbar_logger import ProgbarLogger

    return ProgbarLogger

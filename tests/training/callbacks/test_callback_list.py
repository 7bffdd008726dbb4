"""CallbackList: who is called when, and where the loop begins and ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from ckptstore import InvalidInputError
from ckptstore.training.callbacks import (
    BackupAndRestore,
    Callback,
    CallbackList,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
)
from ckptstore.training.training import Training, training_of

HOOKS_WITH_NUMBER = [
    f"on_{what}_{when}"
    for what in ("epoch", "train_batch", "test_batch", "predict_batch")
    for when in ("begin", "end")
]
HOOKS = [f"on_{what}_{when}" for what in ("train", "test", "predict") for when in ("begin", "end")]


class Noting(Callback):
    def __init__(self, name, calls, turn=0):
        self.name, self.calls, self.turn = name, calls, turn

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args: self.calls.append((self.name, name, *args))
        return super().__getattribute__(name)


def test_every_hook_reaches_every_callback():
    calls = []
    callbacks = CallbackList([Noting("a", calls), Noting("b", calls)])
    for hook in HOOKS:
        getattr(callbacks, hook)({"x": 1.0})
    for hook in HOOKS_WITH_NUMBER:
        getattr(callbacks, hook)(3, {"x": 1.0})
    expected = [(name, hook, {"x": 1.0}) for hook in HOOKS for name in "ab"]
    expected += [(name, hook, 3, {"x": 1.0}) for hook in HOOKS_WITH_NUMBER for name in "ab"]
    assert calls == expected


def test_who_saves_comes_last_at_ends_and_first_at_beginnings():
    calls = []
    callbacks = CallbackList([Noting("saver", calls, 2), Noting("a", calls), Noting("b", calls)])
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_train_batch_end(0)
    callbacks.on_epoch_end(0)
    callbacks.on_train_end()
    order = [
        [name for name, hook, *_ in calls if hook == wanted]
        for wanted in (
            "on_train_begin",
            "on_epoch_begin",
            "on_train_batch_end",
            "on_epoch_end",
            "on_train_end",
        )
    ]
    last, first = ["a", "b", "saver"], ["saver", "a", "b"]
    assert order == [last, first, last, last, first]


def test_old_names_of_batch_hooks_are_called():
    class Old(Callback):
        seen = ()

        def on_batch_begin(self, batch, logs=None):
            self.seen += (("begin", batch),)

        def on_batch_end(self, batch, logs=None):
            self.seen += (("end", batch),)

    old = Old()
    callbacks = CallbackList([old])
    callbacks.on_train_batch_begin(1)
    callbacks.on_train_batch_end(1)
    assert old.seen == (("begin", 1), ("end", 1))


def test_logs_at_an_epochs_end_are_one_copy_with_plain_numbers():
    seen = []
    callbacks = CallbackList(
        [
            LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(added=1)),
            LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs)),
        ]
    )
    given = {"loss": torch.tensor(0.5)}
    callbacks.on_epoch_end(0, given)
    assert seen == [{"loss": 0.5, "added": 1}]
    assert set(given) == {"loss"}


def test_epochs_and_batches_end_when_somebody_stops_the_training():
    callbacks = CallbackList([], epochs=5)
    callbacks.on_train_begin()
    seen = []
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        for batch, item in callbacks.batches("abc"):
            seen.append((epoch, batch, item))
            callbacks.on_train_batch_end(batch)
            if (epoch, batch) == (1, 1):
                callbacks.stop_training = True
        callbacks.on_epoch_end(epoch)
    assert seen == [(0, 0, "a"), (0, 1, "b"), (0, 2, "c"), (1, 0, "a"), (1, 1, "b")]
    callbacks.on_train_begin()
    assert list(callbacks.epochs()) == [0, 1, 2, 3, 4]


def test_epochs_begin_where_asked_and_need_the_beginning():
    callbacks = CallbackList([], epochs=5, initial_epoch=3)
    with pytest.raises(InvalidInputError, match="on_train_begin"):
        next(callbacks.epochs())
    callbacks.on_train_begin()
    assert list(callbacks.epochs()) == [3, 4]


def test_batches_that_are_done_are_passed_over_after_a_restore(tmp_path):
    def go(until):
        model = torch.nn.Linear(1, 1)
        callbacks = CallbackList([BackupAndRestore(tmp_path, save_freq=1)], model=model, epochs=2)
        callbacks.on_train_begin()
        seen = []
        for epoch in callbacks.epochs():
            callbacks.on_epoch_begin(epoch)
            for batch, item in callbacks.batches("abcd"):
                seen.append((epoch, batch, item))
                callbacks.on_train_batch_end(batch)
                if (epoch, batch) == until:
                    return seen
            callbacks.on_epoch_end(epoch)
        return seen

    first = go((0, 1))
    assert first + go(None) == [
        (epoch, batch, item) for epoch in (0, 1) for batch, item in enumerate("abcd")
    ]


def test_a_callback_of_keras_style_may_stop_through_the_model():
    model = torch.nn.Linear(1, 1)
    callbacks = CallbackList([], model=model, epochs=3)
    callbacks.on_train_begin()
    model.stop_training = True
    assert callbacks.stop_training
    callbacks.on_train_begin()
    assert not callbacks.stop_training


def test_siblings_find_each_other_by_the_model():
    model = torch.nn.Linear(1, 1)
    one, other = Callback(), Callback()
    one.set_model(model)
    other.set_model(model)
    assert one.training is other.training
    assert one.training.callbacks == [one, other]
    assert training_of(model) is one.training
    callbacks = CallbackList([one], model=model)
    assert one.training is callbacks.training is training_of(model)
    with pytest.raises(InvalidInputError, match="takes part in no training"):
        _ = Callback().training


def test_neither_model_nor_training_is_held_for_longer_than_needed():
    model = torch.nn.Linear(1, 1)
    callbacks = CallbackList([EarlyStopping()], model=model)
    found = weakref.ref(model), weakref.ref(callbacks.training)
    del model, callbacks
    gc.collect()
    assert [reference() for reference in found] == [None, None]


def test_states_are_kept_by_the_class_and_numbered():
    first, second = EarlyStopping("loss"), EarlyStopping("mae")
    callbacks = CallbackList([first, Callback(), second], epochs=9)
    callbacks.on_train_begin()
    first.wait, second.wait = 3, 4
    callbacks.on_epoch_begin(0)
    callbacks.on_train_batch_end(0)
    callbacks.training.epoch = 7
    state = callbacks.state_dict()
    assert set(state["states"]) == {"EarlyStopping", "EarlyStopping_2"}
    others = [EarlyStopping("loss"), EarlyStopping("mae"), EarlyStopping("acc")]
    again = CallbackList(others, epochs=9)
    again.load_state_dict(state)  # before on_train_begin, which begins anew
    again.on_train_begin()
    assert [other.wait for other in others] == [3, 4, 0]
    assert list(again.epochs()) == [7, 8]
    assert again.training.step == 1


def test_learning_rates_of_several_optimizers_and_groups():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    one = torch.optim.SGD(
        [{"params": weights[:1], "lr": 1.0}, {"params": weights[1:2], "lr": 0.5}], lr=1
    )
    other = torch.optim.Adam(weights[2:], lr=0.1)
    training = Training(None, {"generator": one, "critic": other, "scheduler": None})
    assert [rate.value for rate in training.rates] == [1.0, 0.5, 0.1]
    assert training.learning_rates == {"learning_rate_generator": 1.0, "learning_rate_critic": 0.1}
    training.learning_rate = 0.25
    assert training.learning_rate == 0.25
    assert {rate.value for rate in training.rates} == {0.25}
    assert Training(None, {"optimizer": one}).learning_rates == {"learning_rate": 0.25}
    with pytest.raises(InvalidInputError, match="optimizer"):
        _ = Training().learning_rate


def test_importing_callbacks_imports_neither_torch_nor_keras():
    program = (
        "import sys, ckptstore.training.callbacks as c\n"
        "for name in c.__all__: getattr(c, name)\n"
        "c.EarlyStopping(); c.CSVLogger('x'); c.BackupAndRestore('memory://')\n"
        "print(sorted({'torch', 'keras', 'tensorboard', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [ModelCheckpoint, BackupAndRestore])
def test_saving_without_a_model_is_an_error_at_the_beginning(kind):
    with pytest.raises(InvalidInputError, match="no model"):
        CallbackList([kind("memory://")]).on_train_begin()

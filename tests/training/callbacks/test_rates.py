"""LearningRateScheduler and ReduceLROnPlateau over plain optimizers."""

from __future__ import annotations

import pytest
import torch

from ckptstore import InvalidInputError
from ckptstore.training.callbacks import (
    CallbackList,
    LambdaCallback,
    LearningRateScheduler,
    ReduceLROnPlateau,
)


def optimizer():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD(
        [{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 0.5}], lr=0.1
    )


def rates(made):
    return [group["lr"] for group in made.param_groups]


def test_each_group_keeps_its_share():
    made = optimizer()
    callbacks = CallbackList([LearningRateScheduler(lambda epoch, rate: rate / 2)], optimizer=made)
    callbacks.on_epoch_begin(0)
    assert rates(made) == [0.5, 0.25]
    reduce = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_lr=0.2)
    callbacks = CallbackList([reduce], optimizer=made)
    callbacks.on_train_begin()
    for epoch in range(4):
        callbacks.on_epoch_end(epoch, {"loss": 1.0})
    assert rates(made) == [0.2, 0.2]


def test_a_schedule_that_fails_fails_as_itself():
    def schedule(epoch, rate):
        return rate + "x"

    callbacks = CallbackList([LearningRateScheduler(schedule)], optimizer=optimizer())
    with pytest.raises(TypeError, match="str"):
        callbacks.on_epoch_begin(0)
    callbacks = CallbackList([LearningRateScheduler(lambda epoch: "fast")], optimizer=optimizer())
    with pytest.raises(InvalidInputError, match="a number is expected"):
        callbacks.on_epoch_begin(0)


def test_the_rate_is_among_the_metrics_of_those_who_come_after():
    seen = []
    callbacks = CallbackList(
        [
            LearningRateScheduler(lambda epoch: 0.25),
            LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs)),
        ],
        optimizer=optimizer(),
    )
    callbacks.on_epoch_begin(0)
    callbacks.on_epoch_end(0, {"loss": 1.0})
    assert seen == [{"loss": 1.0, "learning_rate": 0.25}]


def test_without_an_optimizer_the_error_says_what_to_pass():
    with pytest.raises(InvalidInputError, match="optimizer="):
        CallbackList([LearningRateScheduler(lambda epoch: 1.0)]).on_epoch_begin(0)


def test_a_factor_that_does_not_reduce_is_an_error():
    with pytest.raises(InvalidInputError, match="less than 1"):
        ReduceLROnPlateau(factor=1.0)


def test_they_say_what_they_do_when_asked(capsys):
    made = optimizer()
    callbacks = CallbackList(
        [
            LearningRateScheduler(lambda epoch: 0.5, verbose=1),
            ReduceLROnPlateau("loss", patience=1, verbose=1),
        ],
        optimizer=made,
    )
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        callbacks.on_epoch_end(epoch, {"loss": 1.0})
    assert "Epoch 1: learning rate set to 0.5." in (text := capsys.readouterr().err)
    assert "Epoch 2: learning rate reduced to 0.05." in text


def test_a_missing_metric_warns_what_there_is():
    callbacks = CallbackList([ReduceLROnPlateau()], optimizer=optimizer())
    with pytest.warns(UserWarning, match="'val_loss'.*Available: loss, learning_rate"):
        callbacks.on_epoch_end(0, {"loss": 1.0})

"""EarlyStopping: where it keeps the best weights, and what it says."""

from __future__ import annotations

import pytest
import torch

import ckptstore
from ckptstore import InvalidInputError
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    CallbackList,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    TerminateOnNaN,
)

LOSSES = (3.0, 1.0, 2.0, 2.5, 0.5)


def drive(callbacks, losses=LOSSES, **kwargs):
    """Epochs whose weights are the epoch's number."""
    model = torch.nn.Linear(2, 2)
    found = CallbackList(callbacks, model=model, epochs=len(losses), **kwargs)
    found.on_train_begin()
    for epoch in found.epochs():
        found.on_epoch_begin(epoch)
        torch.nn.init.constant_(model.weight, epoch)
        found.on_epoch_end(epoch, {"val_loss": losses[epoch]})
    found.on_train_end()
    return model.weight[0, 0].item()


def stopping(**kwargs):
    return EarlyStopping(patience=2, restore_best_weights=True, **kwargs)


@pytest.mark.parametrize(
    ("make", "branch"),
    [
        (lambda path: [stopping(store=path)], "best-weights"),
        (
            lambda path: [stopping(store=CheckpointManager(path, branch="mine"))],
            "mine-best-weights",
        ),
        (lambda path: [stopping(), ModelCheckpoint(path)], "best-weights"),
        (lambda path: [stopping(), ModelCheckpoint(path, branch="run-7")], "run-7-best-weights"),
        (lambda path: [stopping(), ModelCheckpoint(path, branch="e{epoch}")], "best-weights"),
        (lambda path: [BackupAndRestore(path), stopping(), ModelCheckpoint(path)], "best-weights"),
        (lambda path: [BackupAndRestore(path), stopping()], "backup-best-weights"),
        (
            lambda path: [stopping(), ModelCheckpoint(CheckpointManager(path, branch="x"))],
            "x-best-weights",
        ),
    ],
    ids=["store", "manager", "checkpoint", "branch", "template", "both", "backup", "managed"],
)
def test_the_best_weights_come_back_from_the_store(tmp_path, make, branch):
    assert drive(make(tmp_path)) == 1.0
    best = ckptstore.open(tmp_path).resolve(branch)
    assert best.message == "best so far, epoch 2"
    assert best.metrics == {"val_loss": 1.0}
    assert set(ckptstore.open(tmp_path).checkout(branch)["model"]) == {"weight", "bias"}


def test_the_trainings_own_manager_serves(tmp_path):
    assert drive([stopping()], manager=CheckpointManager(tmp_path)) == 1.0


def test_no_store_is_an_error_at_the_beginning_that_says_what_to_pass():
    with pytest.raises(InvalidInputError, match="Pass store="):
        drive([stopping()])
    assert drive([EarlyStopping(patience=2)]) == 3.0


def test_weights_that_others_save_too_are_stored_once(tmp_path):
    drive([stopping(), ModelCheckpoint(tmp_path)])
    repository = ckptstore.open(tmp_path)
    of_model = {
        array.path: array.nbytes
        for array in repository.resolve("main").arrays
        if "model" in array.path
    }
    assert of_model
    assert repository.resolve("best-weights").array_bytes == sum(of_model.values())


def test_only_a_few_of_the_improvements_are_kept(tmp_path):
    losses = [10.0 - epoch for epoch in range(8)]
    assert drive([stopping(store=tmp_path)], losses) == 7.0
    live = [found for found in ckptstore.open(tmp_path).log("best-weights") if not found.expired]
    assert [found.message for found in live] == [
        f"best so far, epoch {epoch}" for epoch in (8, 7, 6)
    ]


def test_a_best_that_expired_is_replaced_by_the_newest_with_a_warning(tmp_path):
    stop = stopping(store=tmp_path)

    def forget(epoch, logs):
        if epoch == 5:
            stop._best_id = str(ckptstore.open(tmp_path).resolve("best-weights~5").id)

    losses = [10.0, 9.0, 8.0, 7.0, 6.0, 5.0]
    with pytest.warns(UserWarning, match="Restoring the newest"):
        assert drive([stop, LambdaCallback(on_epoch_end=forget)], losses) == 5.0


def test_nothing_to_restore_is_a_warning(tmp_path):
    nan = float("nan")
    with pytest.warns(UserWarning, match="restores nothing"):
        assert drive([stopping(store=tmp_path)], [nan, nan]) == 1.0


def test_a_first_nan_does_not_hide_what_comes_after_it():
    stop = EarlyStopping(patience=3)
    drive([stop], [float("nan"), 3.0, 2.0, 1.0, 1.0, 1.0])
    assert (stop.best, stop.best_epoch, stop.stopped_epoch) == (1.0, 3, 0)


def test_it_never_stops_after_the_first_epoch():
    callbacks = CallbackList([EarlyStopping()])
    callbacks.on_train_begin()
    callbacks.on_epoch_end(0, {"val_loss": float("nan")})
    assert not callbacks.stop_training
    callbacks.on_epoch_end(1, {"val_loss": float("nan")})
    assert callbacks.stop_training


def test_a_missing_metric_warns_what_there_is():
    callbacks = CallbackList([EarlyStopping("val_f1")])
    callbacks.on_train_begin()
    with pytest.warns(UserWarning, match="'val_f1'.*Available: loss, val_loss"):
        callbacks.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})


def test_it_says_what_it_did_when_asked(tmp_path, capsys):
    drive([stopping(store=tmp_path, verbose=1)])
    assert capsys.readouterr().err.splitlines() == [
        "Epoch 4: early stopping",
        "Restoring the weights of epoch 2, the best by val_loss (min).",
    ]


def test_it_can_be_used_again(tmp_path):
    stop = stopping(store=tmp_path)
    assert drive([stop]) == drive([stop]) == 1.0


def test_a_loop_that_calls_set_model_finds_the_end_on_its_model():
    model = torch.nn.Linear(1, 1)
    callback = EarlyStopping("loss", mode="min", patience=1)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.0})
    assert not getattr(model, "stop_training", False)
    callback.on_epoch_end(1, {"loss": 1.0})
    assert model.stop_training is True
    other = torch.nn.Linear(1, 1)
    nan = TerminateOnNaN()
    nan.set_model(other)
    nan.on_train_batch_end(0, {"loss": float("nan")})
    assert other.stop_training is True

"""ModelCheckpoint: what it saves, where, and what it says."""

from __future__ import annotations

import os
import signal

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
from tests.helpers.epochs import drive


def test_each_epoch_is_a_checkpoint_with_its_metrics(tmp_path):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    logs = [{"loss": 0.5, "name": "x", "list": [1]}, {"loss": torch.tensor(0.25)}]
    drive([ModelCheckpoint(tmp_path), EarlyStopping("loss")], logs, optimizer=optimizer)
    repository = ckptstore.open(tmp_path)
    newest, oldest = repository.log("main")
    assert (oldest.message, oldest.step, oldest.metrics) == ("epoch 1", 2, {"loss": 0.5})
    assert (newest.message, newest.step, newest.metrics) == ("epoch 2", 4, {"loss": 0.25})
    state = repository.checkout("main")
    assert set(state) == {"model", "optimizer", "callbacks", "rng", "progress"}
    progress = {"epoch": 2, "batch": 0, "objects": {"optimizer": {"class": "AdamW"}}}
    assert state["progress"] == progress
    assert state["callbacks"]["states"]["EarlyStopping"]["best"] == 0.25


def test_only_the_weights(tmp_path):
    drive([ModelCheckpoint(tmp_path, save_weights_only=True)], [{"loss": 0.5}])
    state = ckptstore.open(tmp_path).checkout()
    assert set(state) == {"model", "progress"}


def test_templates_of_branch_and_message(tmp_path):
    callback = ModelCheckpoint(
        tmp_path, branch="epochs/{epoch:02d}", message="{epoch}: {loss:.3f} after {step} steps"
    )
    drive([callback], [{"loss": 0.5}, {"loss": 0.25}])
    found = ckptstore.open(tmp_path).branches()
    assert {name: checkpoint.message for name, checkpoint in found.items()} == {
        "epochs/01": "1: 0.500 after 2 steps",
        "epochs/02": "2: 0.250 after 4 steps",
    }


def test_a_template_that_cannot_be_filled_says_what_there_is(tmp_path):
    with pytest.raises(InvalidInputError, match=r"val_los.*Available: loss, step, epoch"):
        drive([ModelCheckpoint(tmp_path, message="{val_los}")], [{"loss": 0.5}])
    with pytest.raises(InvalidInputError, match="is no template"):
        ModelCheckpoint(tmp_path, branch="{epoch")


@pytest.mark.parametrize("save_freq", ["batch", 0, -1, True, 2.5, None])
@pytest.mark.parametrize("kind", [ModelCheckpoint, BackupAndRestore])
def test_a_frequency_that_is_none_is_an_error(tmp_path, kind, save_freq):
    with pytest.raises(InvalidInputError, match="save_freq"):
        kind(tmp_path, save_freq=save_freq)


def test_a_manager_that_is_given_decides_what_is_kept(tmp_path):
    manager = CheckpointManager(tmp_path, branch="run", max_to_keep=2, keep_best="loss")
    logs = [{"loss": loss} for loss in (3.0, 1.0, 2.0, 4.0, 5.0)]
    with manager:
        drive([ModelCheckpoint(manager)], logs)
    assert [found.metrics["loss"] for found in manager.checkpoints] == [1.0, 4.0, 5.0]
    assert set(manager.tracked) == {"model", "callbacks"}
    with pytest.raises(InvalidInputError, match="saves to 'run'"):
        ModelCheckpoint(manager, branch="other")
    with pytest.raises(InvalidInputError, match="save_weights_only"):
        ModelCheckpoint(manager, save_weights_only=True)


def test_a_missing_metric_saves_and_warns_what_there_is(tmp_path):
    with pytest.warns(UserWarning, match=r"'val_loss'. Available: loss"):
        drive([ModelCheckpoint(tmp_path, save_best_only=True)], [{"loss": 0.5}])
    assert len(ckptstore.open(tmp_path).log()) == 1


def test_a_metric_of_several_numbers_saves_and_warns(tmp_path):
    with pytest.warns(UserWarning, match="no number for 'loss'"):
        drive(
            [ModelCheckpoint(tmp_path, monitor="loss", save_best_only=True)],
            [{"loss": torch.ones(2)}],
        )
    assert len(ckptstore.open(tmp_path).log()) == 1


def test_a_first_nan_does_not_hide_what_comes_after_it(tmp_path):
    nan = float("nan")
    callback = ModelCheckpoint(tmp_path, monitor="loss", save_best_only=True)
    drive([callback], [{"loss": loss} for loss in (nan, 3.0, nan, 3.0, 2.0)])
    assert [found.metrics["loss"] for found in ckptstore.open(tmp_path).log()] == [2.0, 3.0]


def test_it_says_what_it_does_when_asked(tmp_path, capsys):
    callback = ModelCheckpoint(tmp_path, monitor="loss", save_best_only=True, verbose=1)
    drive([callback], [{"loss": 0.5}, {"loss": 0.5}, {"loss": 0.25}])
    assert capsys.readouterr().err.splitlines() == [
        "Epoch 1: loss (min) improved from nothing to 0.50000",
        "Epoch 1: saved to main: epoch 1",
        "Epoch 2: loss (min) did not improve from 0.50000",
        "Epoch 3: loss (min) improved from 0.50000 to 0.25000",
        "Epoch 3: saved to main: epoch 3",
    ]


@pytest.mark.parametrize("is_async", [True, False])
def test_every_checkpoint_is_announced_once(tmp_path, is_async):
    seen = []
    note = LambdaCallback(
        on_checkpoint=lambda checkpoint, branch: seen.append((checkpoint.step, branch))
    )
    manager = CheckpointManager(tmp_path, branch="run", async_save=is_async, max_to_keep=1)
    drive([ModelCheckpoint(manager, save_freq=1), note, BackupAndRestore(tmp_path)], [{}, {}])
    assert sorted(seen) == [
        (1, "run"),
        (2, "backup"),
        (2, "run"),
        (3, "run"),
        (4, "backup"),
        (4, "run"),
    ]
    assert [step for step, branch in seen if branch == "run"] == [1, 2, 3, 4]


def test_two_that_save_to_one_branch_announce_once(tmp_path):
    seen = []
    note = LambdaCallback(on_checkpoint=lambda checkpoint, branch: seen.append(checkpoint.step))
    manager = CheckpointManager(tmp_path, branch="run")
    drive([note, ModelCheckpoint(manager, save_freq=1), BackupAndRestore(manager)], [{}, {}])
    assert seen == [found.step for found in manager.checkpoints] == [1, 2, 2, 3, 4, 4]
    seen.clear()
    drive([note, ModelCheckpoint(tmp_path, save_freq=1), ModelCheckpoint(tmp_path)], [{}])
    assert len(seen) == len(ckptstore.open(tmp_path).log("main")) == 3


def test_a_manager_serves_one_training_after_another(tmp_path):
    manager = CheckpointManager(tmp_path)
    drive([ModelCheckpoint(manager), EarlyStopping("loss")], [{"loss": 1.0}])
    model = torch.nn.Linear(7, 1)
    drive([ModelCheckpoint(manager)], [{"loss": 1.0}], model=model)
    manager.wait()
    state = ckptstore.open(tmp_path).checkout("main")
    assert torch.equal(state["model"]["weight"], model.weight)
    assert "EarlyStopping" not in state["callbacks"]["states"]


def test_without_batches_epochs_count_as_steps(tmp_path):
    drive([ModelCheckpoint(tmp_path)], [{}, {}, {}], batches=0)
    assert [found.step for found in ckptstore.open(tmp_path).log()] == [3, 2, 1]


def test_a_signal_saves_and_ends(tmp_path):
    manager = CheckpointManager(tmp_path, save_on_signal=True)
    kill = LambdaCallback(
        on_train_batch_end=lambda batch, logs: (
            os.kill(os.getpid(), signal.SIGTERM) if batch == 1 else None
        )
    )
    with pytest.raises(SystemExit) as ended:
        drive([BackupAndRestore(manager), kill], [{}], batches=5)
    assert ended.value.code == 143
    assert manager.latest.step == 2
    again = CallbackList(
        [BackupAndRestore(CheckpointManager(tmp_path))], model=torch.nn.Linear(2, 2)
    )
    again.on_train_begin()
    assert (again.training.epoch, again.training.batch) == (0, 2)


@pytest.mark.parametrize("is_spoiled", [False, True])
def test_terminating_saves_nothing_more_and_names_the_last_good_checkpoint(
    tmp_path, capsys, is_spoiled
):
    model = torch.nn.Linear(2, 2)

    def spoil(batch, logs):
        logs["loss"] = float("inf") if batch == 3 else 1.0
        if batch == 2 and is_spoiled:  # the update before the loss shows it
            model.weight.data[0, 0] = float("nan")

    callbacks = [
        ModelCheckpoint(tmp_path, save_freq=1),
        BackupAndRestore(tmp_path),
        LambdaCallback(on_train_batch_end=spoil),
        TerminateOnNaN(),
    ]
    found = drive(callbacks, [{}, {}], batches=6, model=model)
    assert found.stop_training
    repository = ckptstore.open(tmp_path)
    assert [checkpoint.step for checkpoint in repository.log("main")] == [3, 2, 1]
    good = repository.resolve("main~1" if is_spoiled else "main")
    text = capsys.readouterr().err
    assert "Batch 3: the loss is inf" in text
    assert f"The last good checkpoint is {good.id.short} (step {good.step}) on main." in text


def test_terminating_may_raise():
    callbacks = CallbackList([TerminateOnNaN(raise_error=True)], model=torch.nn.Linear(1, 1))
    callbacks.on_train_begin()
    callbacks.on_train_batch_end(0, {"loss": torch.tensor(1.0)})
    callbacks.on_train_batch_end(1, {})
    with pytest.raises(RuntimeError, match="No checkpoint was saved"):
        callbacks.on_train_batch_end(2, {"loss": torch.tensor(float("nan"))})

"""An interrupted plain loop goes on as one never stopped, bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import ckptstore
from ckptstore.store.reach import reached_by
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
)
from ckptstore.training.callbacks.callback_list import CallbackList
from tests.helpers.training_loop import EPOCHS, STEPS, Interrupt, InterruptedRunError, train

pytestmark = pytest.mark.slow


def interrupt(callbacks, epoch, batch=None, **kwargs):
    with pytest.raises(InterruptedRunError):
        train([*callbacks, Interrupt(epoch, batch)], **kwargs)


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_a_run_interrupted_after_any_epoch_ends_the_same(tmp_path, epoch):
    whole, _ = train([])
    interrupt([BackupAndRestore(tmp_path)], epoch)
    resumed, _ = train([BackupAndRestore(tmp_path)], seed=99)
    assert resumed.epochs == list(range(epoch + 1, EPOCHS))
    assert resumed.is_same(whole)


@pytest.mark.parametrize(
    ("every", "epoch", "batch"), [(1, 0, 0), (1, 2, 1), (4, 0, 3), (4, 1, STEPS - 1), (4, 4, 5)]
)
def test_a_run_interrupted_after_any_batch_ends_the_same(tmp_path, every, epoch, batch):
    whole, _ = train([])
    interrupt([BackupAndRestore(tmp_path, save_freq=every)], epoch, batch)
    resumed, _ = train([BackupAndRestore(tmp_path, save_freq=every)], seed=99)
    assert resumed.is_same(whole)
    steps_done = epoch * STEPS + batch + 1
    assert EPOCHS * STEPS - len(resumed.losses) in range(steps_done - every, steps_done + 1)


def test_random_numbers_drawn_before_the_first_epoch_do_not_matter(tmp_path):
    whole, _ = train([])
    interrupt([BackupAndRestore(tmp_path)], 1)
    resumed, _ = train([BackupAndRestore(tmp_path)], on_begun=lambda: torch.rand(3))
    assert resumed.is_same(whole)


def stateful(tmp_path: Path, log: str):
    """Callbacks with state; the savers come first, where they would save too early."""
    return [
        BackupAndRestore(tmp_path / "store", branch="run"),
        ModelCheckpoint(tmp_path / "store", save_best_only=True, monitor="val_loss"),
        ModelCheckpoint(tmp_path / "store", branch="often", save_freq=4),
        CSVLogger(tmp_path / log),
        EarlyStopping("val_loss", patience=4, min_delta=1 / 8, restore_best_weights=True),
        ReduceLROnPlateau("val_loss", patience=1, cooldown=1, factor=0.5),
        LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        TensorBoard(tmp_path / "logs", write_graph=False, update_freq=2),
    ]


SERIES = (8.0, 5.0, 5.5, 4.95, 5.2, 4.99, 4.96, 3.0, 2.0)


@pytest.mark.parametrize(
    ("epoch", "batch"), [(0, None), (1, 3), (2, None), (3, None), (4, 3), (5, None)]
)
def test_the_states_of_callbacks_are_restored(tmp_path, epoch, batch):
    whole_path = tmp_path / "whole"
    whole_path.mkdir()
    kwargs = {"epochs": 9, "val_loss": lambda epoch, loss: SERIES[epoch]}
    whole, callbacks = train(stateful(whole_path, "log.csv"), **kwargs)
    interrupt(stateful(tmp_path, "log.csv"), epoch, batch, **kwargs)
    resumed, again = train(stateful(tmp_path, "log.csv"), seed=5, **kwargs)
    assert whole.epochs[-1] == 5  # patience 4 after epoch 1
    assert resumed.is_same(whole)
    assert (tmp_path / "log.csv").read_bytes() == (whole_path / "log.csv").read_bytes()
    for branch in ("main", "often"):
        steps = [
            {(found.message, found.step) for found in ckptstore.open(path / "store").log(branch)}
            for path in (whole_path, tmp_path)
        ]
        assert steps[1] == steps[0]
    one, other = again.state_dict()["states"], callbacks.state_dict()["states"]
    assert one["EarlyStopping"].pop("best_id")
    assert other["EarlyStopping"].pop("best_id")
    for states in (one, other):  # the names of the files are those of each training
        assert states["TensorBoard"].pop("run")
        assert states["TensorBoard"].pop("sizes")
    assert one == other


def test_a_run_stopped_early_does_not_begin_again(tmp_path):
    def callbacks():
        return [BackupAndRestore(tmp_path, branch="run"), EarlyStopping("val_loss", patience=1)]

    interrupt(callbacks(), 1, val_loss=lambda epoch, loss: 1.0)
    resumed, _ = train(callbacks())
    assert resumed.epochs == []


def test_the_backup_goes_with_a_normal_end_and_stays_where_asked(tmp_path):
    train(
        [
            BackupAndRestore(tmp_path, branch="gone"),
            BackupAndRestore(tmp_path, branch="kept", delete_checkpoint=False),
        ]
    )
    assert list(ckptstore.open(tmp_path).branches()) == ["kept"]


def test_a_branch_of_a_manager_is_not_deleted(tmp_path):
    manager = CheckpointManager(tmp_path, branch="mine", async_save=False)
    train([BackupAndRestore(manager)])
    assert [found.step for found in manager.checkpoints] == [STEPS * (n + 1) for n in range(EPOCHS)]


def test_an_asynchronous_manager_resumes_as_well(tmp_path):
    whole, _ = train([])
    manager = CheckpointManager(tmp_path)
    interrupt([BackupAndRestore(manager)], 2)
    manager.wait()
    resumed, _ = train([BackupAndRestore(CheckpointManager(tmp_path))], seed=3)
    assert resumed.is_same(whole)


def test_two_that_save_through_one_manager_save_once(tmp_path):
    manager = CheckpointManager(tmp_path)
    train([BackupAndRestore(manager), ModelCheckpoint(manager)], epochs=2)
    assert [found.step for found in manager.checkpoints] == [STEPS, 2 * STEPS]


def test_the_backup_before_is_used_when_the_last_is_damaged(tmp_path):
    whole, _ = train([])
    interrupt([BackupAndRestore(tmp_path, double_checkpoint=True)], 2)
    repository = ckptstore.open(tmp_path)
    one, other = repository.log("backup")[:2]
    for path in reached(tmp_path, repository, one) - reached(tmp_path, repository, other):
        damage(path)
    with pytest.warns(UserWarning, match="newest backup is damaged"):
        resumed, _ = train([BackupAndRestore(tmp_path, double_checkpoint=True)], seed=1)
    assert resumed.epochs == list(range(2, EPOCHS))
    assert resumed.is_same(whole)


def test_a_damaged_backup_without_another_is_an_error(tmp_path):
    interrupt([BackupAndRestore(tmp_path)], 2)
    damage_all(tmp_path)
    with pytest.raises(ckptstore.CorruptError):
        train([BackupAndRestore(tmp_path)])


def reached(root, repository, checkpoint):
    """The files of the objects that a checkpoint needs."""
    digests = map(str, reached_by(checkpoint.id, repository._catalog).digests)
    return {root / "objects" / digest[:2] / digest[2:] for digest in digests}


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def damage_all(root):
    for path in (root / "objects").rglob("*"):
        if path.is_file():
            damage(path)


def test_a_manager_alone_tracks_the_callbacks(tmp_path):
    """The list is stateful: a manager can save and restore it without BackupAndRestore."""
    whole, _ = train([EarlyStopping("val_loss", patience=9)])

    def resume(callbacks: CallbackList) -> None:
        manager = callbacks.training.manager
        manager.restore_or_initialize()

    def make(callbacks, **kwargs):
        manager = CheckpointManager(
            tmp_path,
            async_save=False,
            **{name: kwargs.pop(name) for name in ("model", "optimizer", "loader")},
        )
        return CallbackList(callbacks, manager=manager, **kwargs)

    def callbacks():
        return [EarlyStopping("val_loss", patience=9), ModelCheckpointOf()]

    with pytest.raises(InterruptedRunError):
        train([*callbacks(), Interrupt(2)], make=make, on_start=resume)
    resumed, again = train(callbacks(), make=make, on_start=resume, seed=4)
    assert resumed.epochs == [3, 4]
    assert resumed.is_same(whole)
    assert again.callbacks[0].wait + again.callbacks[0].best_epoch == EPOCHS - 1


class ModelCheckpointOf(ModelCheckpoint):
    """Saves through the training's own manager."""

    def __init__(self):
        super().__init__("memory://unused")

    def set_training(self, training):
        super().set_training(training)
        self.store = training.manager


def test_a_checkpoint_without_callbacks_is_restored_as_well(tmp_path):
    model = torch.nn.Linear(2, 2)
    manager = CheckpointManager(tmp_path, async_save=False, model=model)
    manager.save(7, epoch=3, batch=0)
    again = torch.nn.Linear(2, 2)
    callbacks = CallbackList([BackupAndRestore(CheckpointManager(tmp_path))], model=again, epochs=5)
    callbacks.on_train_begin()
    assert list(callbacks.epochs()) == [3, 4]
    assert callbacks.training.step == 7
    assert torch.equal(again.weight, model.weight)


def test_a_model_of_another_shape_is_an_error_that_lists_the_differences(tmp_path):
    manager = CheckpointManager(tmp_path, async_save=False, model=torch.nn.Linear(2, 2))
    manager.save(7, epoch=3, batch=0)
    callbacks = CallbackList(
        [BackupAndRestore(CheckpointManager(tmp_path))], model=torch.nn.Linear(3, 2)
    )
    with pytest.raises(ckptstore.CheckoutMismatchError, match="weight"):
        callbacks.on_train_begin()


def test_nothing_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(stateful(tmp_path, "log.csv"))

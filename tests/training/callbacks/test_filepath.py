"""ModelCheckpoint with the arguments that lines written for Keras have: filepath, period, lists."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import ConflictError, InvalidInputError
from ckptstore.retention import MaxToKeep
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    CallbackList,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from tests.helpers.epochs import drive

PERIOD = "ignore:ModelCheckpoint. period is deprecated:DeprecationWarning"


def losses(*values):
    return [{"val_loss": value} for value in values]


def tags(repository):
    """The metric of each tag's checkpoint."""
    return {name: made.metrics.get("val_loss") for name, made in repository.tags().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_line_of_the_article_runs(folder):
    with pytest.warns(DeprecationWarning, match="period is deprecated"):
        callback = ModelCheckpoint(
            filepath="weights-{epoch}-{val_loss}.hdf5", period=1, mode="Auto"
        )
    drive([callback], losses(0.5, 0.25))
    assert [path.name for path in folder.iterdir()] == [".ckptstore"]
    repository = ckptstore.open(".ckptstore")
    assert tags(repository) == {"weights-1-0.5.hdf5": 0.5, "weights-2-0.25.hdf5": 0.25}
    assert repository.resolve("weights-2-0.25.hdf5").message == "weights-2-0.25.hdf5"


def test_the_warning_of_period_names_the_line_that_passed_it():
    with pytest.warns(DeprecationWarning, match="period") as caught:
        ModelCheckpoint("memory://", period=2)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("is_first", [True, False])
def test_files_that_keras_would_write_are_tags_of_the_repository_beside_them(
    folder, as_path, is_first
):
    path = as_path("runs/a/weights.{epoch:02d}-{val_loss:.2f}.keras")
    drive([ModelCheckpoint(path) if is_first else ModelCheckpoint(filepath=path)], losses(0.5))
    assert [found.name for found in folder.rglob("*") if "weights" in found.name] == []
    assert [found.name for found in (folder / "runs/a").iterdir()] == [".ckptstore"]
    assert tags(ckptstore.open("runs/a/.ckptstore")) == {"weights.01-0.50.keras": 0.5}


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_folder_is_the_repository_itself(folder, as_path):
    drive([ModelCheckpoint(filepath=as_path("ckpt/"))], losses(0.5))
    (made,) = ckptstore.open("ckpt").log()
    assert made.message == "epoch 1"
    assert not ckptstore.open("ckpt").tags()
    (folder / "old.h5").mkdir()
    assert ModelCheckpoint("old.h5").store == "old.h5"  # a folder that is there is none of files


def test_a_name_without_fields_moves_to_each_better_checkpoint(folder):
    callback = ModelCheckpoint("best.weights.h5", save_best_only=True, save_weights_only=True)
    drive([callback], losses(0.5, 0.75, 0.25, 0.5))
    repository = ckptstore.open(".ckptstore")
    assert tags(repository) == {"best.weights.h5": 0.25}
    assert set(repository.checkout("best.weights.h5")) == {"model", "progress"}
    model = torch.nn.Linear(2, 2)
    ckptstore.load_weights(model, repository, "best.weights.h5")


def test_the_store_may_be_another_repository_or_a_manager(folder):
    drive([ModelCheckpoint("store", filepath="w/{epoch}.h5", message="at {epoch}")], losses(0.5))
    repository = ckptstore.open("store")
    assert {name: made.message for name, made in repository.tags().items()} == {"1.h5": "at 1"}
    assert [path.name for path in folder.iterdir()] == ["store"]
    with CheckpointManager("managed", branch="run", max_to_keep=1) as manager:
        callbacks = [ModelCheckpoint(manager), ModelCheckpoint(manager, filepath="{epoch}.h5")]
        drive(callbacks, losses(0.5, 0.25, 0.125))
    assert tags(manager.repository) == {"1.h5": 0.5, "2.h5": 0.25, "3.h5": 0.125}
    assert len(manager.repository.log("run")) == 3
    assert len(manager.checkpoints) == 3  # a policy expires no checkpoint that has a tag


@pytest.mark.parametrize("is_async", [True, False])
def test_a_manager_keeps_what_a_name_has_moved_to(folder, is_async):
    with CheckpointManager("store", max_to_keep=1, async_save=is_async) as manager:
        best = ModelCheckpoint(manager, filepath="best.h5", save_best_only=True)
        drive([best], losses(0.5, 0.25))
        drive([ModelCheckpoint(manager)], losses(0.75, 0.75))
    assert [made.metrics["val_loss"] for made in manager.checkpoints] == [0.25, 0.75]
    assert tags(manager.repository) == {"best.h5": 0.25}


def test_fields_of_batches_and_folders(folder):
    callback = ModelCheckpoint("a/{epoch}/{batch:03d}-{step}", save_freq=2)
    drive([callback], losses(0.5, 0.5), batches=3)
    assert list(ckptstore.open("a/.ckptstore").tags()) == ["1/002-2", "2/001-4", "2/003-6"]


def test_characters_that_no_tag_has(folder, capsys):
    drive([ModelCheckpoint("epoch={epoch} {val_loss:.1f}.h5", verbose=1)], losses(-0.5))
    (name,) = ckptstore.open(".ckptstore").tags()
    assert name == "epoch_1_-0.5.h5"
    drive([ModelCheckpoint("store", filepath="{epoch}.h5", verbose=1)], losses(-0.5))
    assert capsys.readouterr().err.splitlines() == [
        "Epoch 1: saved to main as epoch_1_-0.5.h5: epoch=1 -0.5.h5",
        "Epoch 1: saved to main as 1.h5",
    ]


def test_a_metric_that_is_missing_is_an_error_at_the_first_epoch_as_in_keras(folder):
    path = "{epoch}-{val_acc:.2f}.keras"
    theirs = keras.callbacks.ModelCheckpoint(path, save_best_only=True)
    theirs.set_model(keras.Sequential())
    with pytest.raises(KeyError, match="val_acc"):
        theirs.on_epoch_end(0, {"val_loss": 0.5})
    mine = ModelCheckpoint(path, save_best_only=True)
    with pytest.raises(InvalidInputError, match=r"val_acc.*Available: val_loss, step, epoch"):
        drive([mine], losses(0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r'Pass store, such as ModelCheckpoint\("runs/store"\)'),
        ({"store": "a", "filepath": "b"}, "Together, store is a repository and filepath names"),
        ({"store": "{epoch}.h5", "filepath": "{epoch}.h5"}, "Together"),
        ({"filepath": 3}, "filepath is 3; a path is expected"),
        ({"store": "memory://", "period": 0}, "period is 0; a number of epochs"),
        ({"store": "memory://", "period": True}, "period is True"),
        ({"store": "memory://", "period": 2, "save_freq": 10}, "Pass one of them"),
        ({"store": "memory://", "monitor": []}, "names no metric"),
        ({"store": "memory://", "monitor": 3}, "monitor"),
        (
            {"store": "memory://", "monitor": ["a", "b"], "initial_value_threshold": 1.0},
            "one ModelCheckpoint for each",
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings(PERIOD)
def test_arguments_that_contradict_each_other(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        ModelCheckpoint(**arguments)


def test_in_fit_no_folder_of_a_file_name_is_made(folder):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [
        ModelCheckpoint("w-{epoch:02d}-{loss:.0f}.keras"),
        ModelCheckpoint("best.keras", "loss", 0, True),
    ]
    x, y = np.zeros((4, 2), "float32"), np.zeros((4, 1), "float32")
    model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    assert [path.name for path in folder.iterdir()] == [".ckptstore"]
    assert list(ckptstore.open(".ckptstore").tags()) == [
        "best.keras",
        "w-01-0.keras",
        "w-02-0.keras",
    ]


class Keras2:
    """When the ModelCheckpoint of Keras 2.2 saves; its code without the files."""

    def __init__(self, *, save_best_only: bool, period: int) -> None:
        self.save_best_only, self.period = save_best_only, period
        self.epochs_since_last_save = 0
        self.best = np.inf
        self.saved: list[int] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.epochs_since_last_save += 1
        if self.epochs_since_last_save >= self.period:
            self.epochs_since_last_save = 0
            if self.save_best_only:
                current = logs["val_loss"]
                if np.less(current, self.best):
                    self.best = current
                    self.saved.append(epoch + 1)
            else:
                self.saved.append(epoch + 1)


@pytest.mark.filterwarnings(PERIOD)
@given(
    period=st.integers(1, 4),
    best_only=st.booleans(),
    values=st.lists(st.integers(-3, 3).map(float), max_size=10),
    resumed_at=st.integers(0, 10),
)
def test_period_saves_when_keras_2_did_also_over_a_resume(period, best_only, values, resumed_at):
    theirs = Keras2(save_best_only=best_only, period=period)
    repository = ckptstore.init("memory://")
    arguments: dict[str, Any] = {"save_best_only": best_only, "period": period}
    mine = ModelCheckpoint(repository, message="{epoch}", **arguments)
    callbacks = CallbackList([mine], model=torch.nn.Linear(1, 1))
    callbacks.on_train_begin()
    for epoch, value in enumerate(values):
        if epoch == resumed_at:
            resumed = ModelCheckpoint(repository, message="{epoch}", **arguments)
            state = mine.state_dict()
            mine = resumed
            callbacks = CallbackList([mine], model=torch.nn.Linear(1, 1))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                callbacks.on_train_begin()
            mine.load_state_dict(state)
            callbacks.training.step = epoch
        theirs.on_epoch_end(epoch, {"val_loss": value})
        callbacks.on_epoch_end(epoch, {"val_loss": value})
    assert [int(made.message) for made in reversed(repository.log())] == theirs.saved


def test_with_several_metrics_it_saves_when_any_is_better(tmp_path, capsys):
    callback = ModelCheckpoint(
        tmp_path, monitor=["val_loss", "val_acc"], save_best_only=True, verbose=1
    )
    pairs = [(0.5, 0.5), (0.5, 0.75), (0.25, 0.5), (0.5, 0.5)]
    drive([callback], [{"val_loss": loss, "val_acc": acc} for loss, acc in pairs])
    assert [made.message for made in ckptstore.open(tmp_path).log()] == [
        "epoch 3",
        "epoch 2",
        "epoch 1",
    ]
    assert callback.bests == {"val_loss": 0.25, "val_acc": 0.75}
    assert callback.best == 0.25
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "Epoch 4: val_loss (min) did not improve from 0.25000",
        "Epoch 4: val_acc (max) did not improve from 0.75000",
    ]
    again = ModelCheckpoint(tmp_path, monitor=["val_acc", "f1"], save_best_only=True)
    again.load_state_dict(callback.state_dict())
    assert again.bests == {"val_acc": 0.75, "f1": None}


def test_each_of_several_metrics_that_is_missing_is_one_warning(tmp_path):
    callback = ModelCheckpoint(
        tmp_path, monitor=["val_f1", "val_loss", "val_acc"], save_best_only=True
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drive([callback], losses(0.5, 0.75, 0.25))
    assert [str(one.message).split(". ")[0] for one in caught] == [
        "ModelCheckpoint: there is no number for 'val_f1'",
        "ModelCheckpoint: there is no number for 'val_acc'",
    ]
    assert len(ckptstore.open(tmp_path).log()) == 2


def test_if_all_metrics_are_missing_every_epoch_is_saved_as_in_keras(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor=["a_loss", "b_loss"], save_best_only=True)
    with pytest.warns(UserWarning, match="no number for") as caught:
        drive([callback], losses(0.5, 0.25))
    assert len(caught) == 2
    assert len(ckptstore.open(tmp_path).log()) == 2


def test_a_direction_that_is_unknown_is_refused_for_each_metric(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor=["val_loss", "depth"], save_best_only=True)
    with pytest.raises(InvalidInputError, match="depth"):
        drive([callback], losses(0.5))


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_callbacks_that_watch_one_metric_say_so(kind):
    with pytest.raises(InvalidInputError, match="use one of these callbacks for each"):
        kind(monitor=["val_loss", "val_acc"])


def test_a_state_of_an_earlier_release_holds_one_number():
    callback = ModelCheckpoint("memory://")
    callback.load_state_dict({"best": 0.5, "frequency": {"since": 1, "last_batch": 2}})
    assert (callback.best, callback.bests) == (0.5, {"val_loss": 0.5})


def test_a_resumed_run_goes_on_with_the_best_values(folder):
    def callbacks():
        best = ModelCheckpoint("best-{epoch}.h5", save_best_only=True)
        return [best, BackupAndRestore("backups", delete_checkpoint=False)]

    drive(callbacks(), losses(0.5))
    drive(callbacks(), losses(None, 0.75, 0.25))
    assert tags(ckptstore.open(".ckptstore")) == {"best-1.h5": 0.5, "best-3.h5": 0.25}


def manager(**arguments):
    return CheckpointManager("memory://", model=torch.nn.Linear(1, 1), **arguments)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_save_may_have_a_tag_which_moves(is_async):
    with manager(async_save=is_async, max_to_keep=1) as saving:
        for step in (1, 2, 3):
            saving.save(step, tag="good" if step < 3 else None)
        saving.wait()
    assert saving.repository.resolve("good").step == 2
    assert [made.step for made in saving.checkpoints] == [2, 3]
    assert [operation.description.split(" at ")[0] for operation in saving.repository.operations()][
        ::-1
    ].count("made tag good") == 1
    saving.tag_newest("good")
    assert saving.repository.resolve("good").step == 3
    manager().tag_newest("none")


def test_an_illegal_tag_is_an_error_before_the_save():
    with manager() as saving, pytest.raises(InvalidInputError, match="cannot name a tag"):
        saving.save(1, tag="a b")
    assert saving.latest is None


def test_a_tag_that_is_a_branch_is_an_error_and_the_checkpoint_is_saved():
    saving = manager(async_save=False)
    with pytest.raises(ConflictError, match="'main' is already a branch"):
        saving.save(1, tag="main")
    assert saving.latest is not None


def test_a_tag_moves_only_if_it_may():
    repository = ckptstore.init("memory://")
    first, second = (repository.commit({"a": number}) for number in (1, 2))
    repository.tag("v1", str(first.id))
    with pytest.raises(ConflictError, match="already exists"):
        repository.tag("v1", str(second.id))
    repository.tag("v1", str(second.id), move=True)
    assert repository.tags()["v1"].id == second.id
    assert repository.operations()[0].description == (
        f"moved tag v1 from {first.id.short} to {second.id.short}"
    )
    repository.undo()
    assert repository.tags()["v1"].id == first.id
    repository.tag("v1", str(second.id), move=True)
    repository.gc(MaxToKeep(1), grace=0)
    assert [made.expired for made in repository.log()] == [False, True]

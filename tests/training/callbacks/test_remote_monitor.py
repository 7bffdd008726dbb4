"""RemoteMonitor: which checkpoint an event names, and where. How it sends is in test_logs."""

from __future__ import annotations

import json
import threading

import keras
import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.commit_hooks import address
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import (
    BackupAndRestore,
    CallbackList,
    LambdaCallback,
    ModelCheckpoint,
    RemoteMonitor,
)

PLACE = ("checkpoint", "checkpoint_step", "repository")


def train(callbacks, *, epochs=2):
    """Two batches in each epoch."""
    found = CallbackList(callbacks, model=torch.nn.Linear(1, 1), epochs=epochs)
    found.on_train_begin()
    for epoch in found.epochs():
        found.on_epoch_begin(epoch)
        for batch in range(2):
            found.on_train_batch_end(batch, {"loss": 1.0})
        found.on_epoch_end(epoch, {"loss": 0.5})
    found.on_train_end()


def events(server):
    return [json.loads(body) for *_, body in server.received]


def places(server):
    return [tuple(event.get(name) for name in PLACE) for event in events(server)]


def history(repository, branch="main"):
    return [(str(found.id), found.step, repository.url) for found in repository.log(branch)][::-1]


def test_without_a_checkpoint_an_event_is_as_in_keras(server):
    train([RemoteMonitor(server.root, send_as_json=True)])
    assert events(server) == [{"epoch": epoch, "loss": 0.5} for epoch in range(2)]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_event_names_the_checkpoint_of_its_epoch(server, tmp_path, is_first):
    callbacks = [
        BackupAndRestore(tmp_path / "backups", branch="main"),  # not that one
        ModelCheckpoint(tmp_path / "store"),
    ]
    callbacks.insert(0 if is_first else 2, RemoteMonitor(server.root, send_as_json=True))
    train(callbacks)
    assert places(server) == history(ckptstore.open(tmp_path / "store"))
    assert [event["loss"] for event in events(server)] == [0.5, 0.5]


def test_backups_are_named_where_no_other_callback_saves(server, tmp_path):
    repository = ckptstore.init(tmp_path)
    backup = BackupAndRestore(repository, delete_checkpoint=False)
    train([backup, RemoteMonitor(server.root, send_as_json=True)])
    assert places(server) == history(repository, "backup")


def test_nothing_is_named_before_the_training_has_saved(server, tmp_path):
    train([ModelCheckpoint(tmp_path)])
    repository = ckptstore.open(tmp_path)
    often = ModelCheckpoint(repository, branch="often", save_freq=3)
    train([often, RemoteMonitor(server.root, send_as_json=True)])
    ((made, step, url),) = history(repository, "often")
    assert places(server) == [(None, None, None), (made, step, url)]
    assert step == 3


def test_in_fit_too(server, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [RemoteMonitor(server.root, send_as_json=True), ModelCheckpoint(tmp_path)]
    x, y = np.zeros((4, 2), "float32"), np.zeros((4, 1), "float32")
    model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=callbacks)
    assert places(server) == history(ckptstore.open(tmp_path))


def test_a_save_in_the_background_is_named_once_it_is_durable(server, tmp_path, monkeypatch):
    """Each save ends only after the event of its epoch, at the next save or at the end."""
    manager = CheckpointManager(tmp_path, async_save=True)
    commit, go_on = manager._commit, threading.Semaphore(0)

    def late(*arguments):
        assert go_on.acquire(timeout=30)
        commit(*arguments)

    monkeypatch.setattr(manager, "_commit", late)
    release = LambdaCallback(
        on_epoch_begin=lambda epoch, logs: go_on.release() if epoch else None,
        on_train_end=lambda logs: go_on.release(),
    )
    release.turn = 4  # before the monitor waits
    train([ModelCheckpoint(manager), RemoteMonitor(server.root, send_as_json=True), release])
    first, second = history(manager.repository)
    assert places(server) == [(None, None, None), first, second]
    assert [event["epoch"] for event in events(server)] == [0, 1, 1]
    assert [event["loss"] for event in events(server)] == [0.5] * 3


def test_the_mirror_and_what_is_there_are_named(server, tmp_path):
    manager = CheckpointManager(tmp_path / "store", mirror=tmp_path / "mirror")
    wait = LambdaCallback(on_epoch_end=lambda epoch, logs: epoch or manager.wait_for_mirror())
    wait.turn = 2  # after the save, before the event
    train([ModelCheckpoint(manager), RemoteMonitor(server.root, send_as_json=True), wait])
    first, *_, last = events(server)
    (early, *_), (late, *_) = history(ckptstore.open(tmp_path / "mirror"))
    assert {event["mirror"] for event in events(server)} == {str(tmp_path / "mirror")}
    assert (first["mirrored"], first["mirrored_step"]) == (early, 2)
    assert (last["mirrored"], last["mirrored_step"]) == (late, 4)
    assert last["epoch"] == 1


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("/data/runs a/b?c#d@e", "/data/runs a/b?c#d@e"),
        ("/data/x://me:secret@y", "/data/x://me:secret@y"),
        ("memory://runs", "memory://runs"),
        ("s3://key:secret@bucket/runs?token=secret#secret", "s3://bucket/runs"),
        ("https://me@host:8443/a/b;c?x=1", "https://host:8443/a/b;c"),
    ],
)
def test_the_address_holds_no_credentials(url, sent):
    assert address(url) == sent

"""TensorBoard: its own readers find the checkpoints, and the hyperparameters with their metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

import ckptstore
from ckptstore.integrations.tensorboard import TensorBoardHook
from ckptstore.training import CallbackList, CheckpointManager
from ckptstore.training.callbacks import ModelCheckpoint, TensorBoard

STATE = {"w": np.arange(4.0)}


@pytest.fixture
def repo(tmp_path):
    return ckptstore.init(tmp_path / "store")


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def texts(found):
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in found.Tensors("checkpoint/text_summary")
    ]


def points(found, tag):
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def hparams(found):
    """The hyperparameters and the tags of the metrics."""
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    content = found.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    return (
        {name: value.number_value or value.string_value for name, value in session.hparams.items()},
        [info.name.tag for info in experiment.metric_infos],
    )


def test_a_manager_writes_texts_metrics_and_hyperparameters(repo, tmp_path):
    hook = TensorBoardHook(tmp_path / "logs", hparams={"lr": 0.25, "kind": "wide"})
    with CheckpointManager(repo, on_commit=hook, model=torch.nn.Linear(1, 1)) as saves:
        saves.save(10)  # before the first validation
        saves.save(20, metrics={"val_loss": 0.5}, message="after an epoch")
        saves.save(30, metrics={"val_loss": 0.25})
    hook.close()
    found = read(tmp_path / "logs")
    for (step, text), made in zip(texts(found), repo.log()[::-1], strict=True):
        assert step == made.step
        assert text.startswith(f"`{repo.url}#{made.id}`\n")
        assert f"- checkpoint: {made.id}\n" in text
        assert f"- repository: {repo.url}\n" in text
    assert "- message: after an epoch\n- val_loss: 0.5" in texts(found)[1][1]
    assert points(found, "checkpoint/val_loss") == [(20, 0.5), (30, 0.25)]
    assert hparams(found) == ({"lr": 0.25, "kind": "wide"}, ["checkpoint/val_loss"])


def test_a_writer_of_the_program_is_used(repo, tmp_path):
    writer = SummaryWriter(str(tmp_path / "logs"))
    repo.on_commit(TensorBoardHook(writer))
    repo.commit(STATE, step=1, metrics={"loss": 0.5})
    writer.add_scalar("own", 1.0, 1)
    writer.close()
    found = read(tmp_path / "logs")
    assert points(found, "checkpoint/loss") == [(1, 0.5)]
    assert points(found, "own") == [(1, 1.0)]
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert "_hparams_/experiment" not in found.summary_metadata


def test_the_callback_writes_the_hyperparameters_too(tmp_path):
    callbacks = CallbackList(
        [
            ModelCheckpoint(tmp_path / "store"),
            TensorBoard(tmp_path / "logs", write_graph=False, hparams={"lr": 0.25}),
        ],
        model=torch.nn.Linear(1, 1),
        epochs=2,
    )
    callbacks.on_train_begin()
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        callbacks.on_train_batch_end(0, {"loss": 1.0})
        callbacks.on_epoch_end(epoch, {"loss": 0.5})
    callbacks.on_train_end()
    assert hparams(read(tmp_path / "logs" / "train")) == ({"lr": 0.25}, ["checkpoint/loss"])

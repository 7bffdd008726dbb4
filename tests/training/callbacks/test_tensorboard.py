"""TensorBoard: what its own reader finds in the files."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ckptstore
from ckptstore import InvalidInputError
from ckptstore.training.callbacks import (
    BackupAndRestore,
    CallbackList,
    LambdaCallback,
    ModelCheckpoint,
    TensorBoard,
)


def read(path):
    found = EventAccumulator(
        str(path), size_guidance=dict.fromkeys(("scalars", "tensors", "histograms"), 0)
    )
    found.Reload()
    return found


def scalars(path):
    """All points, by name: (step, value)."""
    found = read(path)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.words(x))))


def train(callbacks, *, epochs=2, batches=3, make=Net, **tracked):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    found = CallbackList(callbacks, model=model, optimizer=optimizer, epochs=epochs, **tracked)
    found.on_train_begin()
    losses = []
    for epoch in found.epochs():
        found.on_epoch_begin(epoch)
        for batch in range(batches):
            found.on_train_batch_begin(batch)
            loss = model(torch.tensor([0, 1, 2, batch])).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            found.on_train_batch_end(batch, {"loss": loss.detach()})
        found.on_test_begin()
        for batch in range(2):
            found.on_test_batch_begin(batch)
            found.on_test_batch_end(batch, {"loss": 1.0})
        found.on_test_end({"loss": 1.5})
        found.on_epoch_end(epoch, {"loss": float(epoch), "val_loss": 2.0, "note": "x"})
    found.on_train_end()
    return losses


def test_metrics_of_epochs(tmp_path):
    train([TensorBoard(tmp_path, write_graph=False)])
    assert scalars(tmp_path / "train") == {
        "epoch_loss": [(0, 0.0), (1, 1.0)],
        "epoch_learning_rate": [(0, 0.25), (1, 0.25)],
    }
    assert scalars(tmp_path / "validation") == {
        "epoch_loss": [(0, 2.0), (1, 2.0)],
        "evaluation_loss_vs_iterations": [(3, 1.5), (6, 1.5)],
    }


@pytest.mark.parametrize(
    ("update_freq", "steps"), [("batch", [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (9, [])]
)
def test_metrics_of_batches(tmp_path, update_freq, steps):
    losses = train([TensorBoard(tmp_path, write_graph=False, update_freq=update_freq)])
    found = scalars(tmp_path / "train").get("batch_loss", [])
    assert [step for step, _ in found] == steps
    assert [value for _, value in found] == pytest.approx([losses[step - 1] for step in steps])
    found = scalars(tmp_path / "validation").get("batch_loss", [])
    assert [step for step, _ in found] == [step for step in steps if step <= 4]


def test_steps_per_second(tmp_path):
    train([TensorBoard(tmp_path, write_graph=False, write_steps_per_second=True, update_freq=3)])
    found = scalars(tmp_path / "train")
    assert [step for step, _ in found["batch_steps_per_second"]] == [3, 6]
    assert all(value > 0 for _, value in found["epoch_steps_per_second"])


def test_weights_as_histograms_and_images(tmp_path):
    train([TensorBoard(tmp_path, histogram_freq=2, write_images=True, write_graph=False)], epochs=3)
    tags = read(tmp_path / "train").Tags()
    names = {name for name, _ in Net().named_parameters()}
    assert set(tags["histograms"]) == {f"{name}/histogram" for name in names}
    assert set(tags["images"]) == {f"{name}/image" for name in names}
    found = read(tmp_path / "train").Histograms("out.bias/histogram")
    assert [event.step for event in found] == [0, 2]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (5, 2), (2, 3, 4), (2, 3, 4, 3), (2, 3, 4, 5), ()])
def test_weights_of_any_shape(tmp_path, shape):
    def make():
        model = Net()
        model.register_parameter("odd", torch.nn.Parameter(torch.ones(shape)))
        return model

    board = TensorBoard(tmp_path, histogram_freq=1, write_images=True, write_graph=False)
    train([board], make=make)
    has_image = "odd/image" in read(tmp_path / "train").Tags()["images"]
    assert has_image == (shape not in [(2, 3, 4, 5), ()])


def test_the_graph_is_written_and_the_training_does_not_notice(tmp_path):
    assert train([TensorBoard(tmp_path)]) == train([])
    assert read(tmp_path / "train").Tags()["graph"]


def test_what_was_frozen_stays_frozen_after_the_graph(tmp_path):
    model = Net()
    model.norm.eval()
    mean = model.norm.running_mean.clone()
    assert train([TensorBoard(tmp_path)], make=lambda: model)
    assert torch.equal(model.norm.running_mean, mean)
    assert model.training
    assert not model.norm.training


def test_a_model_that_cannot_be_traced_is_a_warning(tmp_path, capsys):
    class Odd(Net):
        def forward(self, x):
            if not self.training:
                raise RuntimeError("no")
            return super().forward(x)

    with pytest.warns(UserWarning, match="cannot be traced"):
        losses = train([TensorBoard(tmp_path)], make=Odd)
    assert losses == train([])
    assert capsys.readouterr().out == ""


def test_embeddings_with_their_labels(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    options = {"embeddings_freq": 1, "write_graph": False}
    train([TensorBoard(tmp_path / "one", **options, embeddings_metadata={"words": str(labels)})])
    train([TensorBoard(tmp_path / "two", **options, embeddings_metadata=str(labels))])
    for name in ("one", "two"):
        config = (tmp_path / name / "train" / "projector_config.pbtxt").read_text()
        assert config.count("embeddings {") == 2
        assert list((tmp_path / name).rglob("metadata.tsv"))
    with pytest.raises(InvalidInputError, match=r"'word'\. Available: words"):
        train([TensorBoard(tmp_path, **options, embeddings_metadata={"word": "x"})])


@pytest.mark.parametrize("profile_batch", [2, (2, 3), "2,3", [1, 1]])
def test_batches_are_profiled(tmp_path, profile_batch):
    train([TensorBoard(tmp_path, write_graph=False, profile_batch=profile_batch)])
    (trace,) = (tmp_path / "train").glob("*.pt.trace.json")
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize("profile_batch", [-1, (3, 2), "a", (1, 2, 3), None, ()])
def test_batches_to_profile_that_are_none_are_an_error(profile_batch):
    with pytest.raises(InvalidInputError, match="profile_batch"):
        TensorBoard(profile_batch=profile_batch)


@pytest.mark.parametrize("is_first", [True, False])
def test_checkpoints_appear_with_id_step_and_metrics(tmp_path, is_first):
    board, save = (
        TensorBoard(tmp_path / "logs", write_graph=False),
        ModelCheckpoint(tmp_path / "store"),
    )
    train([board, save] if is_first else [save, board])
    newest, oldest = ckptstore.open(tmp_path / "store").log()
    found = read(tmp_path / "logs" / "train")
    texts = [
        event.tensor_proto.string_val[0].decode()
        for event in found.Tensors("checkpoint/text_summary")
    ]
    assert len(texts) == 2
    for checkpoint, text in zip((oldest, newest), texts, strict=True):
        assert str(checkpoint.id) in text
        assert f"step: {checkpoint.step}" in text
        assert "val_loss: 2.0" in text
        assert "branch: main" in text
    points = scalars(tmp_path / "logs" / "train")
    assert points["checkpoint/step"] == [(3, 3.0), (6, 6.0)]
    assert points["checkpoint/loss"] == [(3, 0.0), (6, 1.0)]


def test_a_resumed_run_goes_on_counting_batches(tmp_path):
    class EndError(Exception):
        pass

    def end(epoch, logs):
        if epoch == 1:
            raise EndError

    def callbacks():
        options = {"write_graph": False, "update_freq": 1}
        return [BackupAndRestore(tmp_path / "store"), TensorBoard(tmp_path / "logs", **options)]

    with pytest.raises(EndError):
        train([*callbacks(), LambdaCallback(on_epoch_begin=end)])
    train(callbacks())
    steps = [step for step, _ in scalars(tmp_path / "logs" / "train")["batch_loss"]]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("crashes", [[3], [2, 3], [4, 5], [3, 3, 4]])
def test_no_point_is_there_twice_after_crashes(tmp_path, crashes, is_first):
    """Each point once, as in a run that was not interrupted; files of others stay as they are."""

    def run(folder, crash=None):
        callbacks = [
            TensorBoard(folder / "logs", update_freq=1),
            BackupAndRestore(folder / "store"),
        ]

        def end(epoch, logs):
            if epoch == crash:
                raise RuntimeError("crash")

        last = LambdaCallback(on_epoch_end=end)
        order = callbacks if is_first else callbacks[::-1]
        train([*order, last], epochs=6)

    other = TensorBoard(tmp_path / "logs")
    alone = CallbackList([other], epochs=1)
    alone.on_train_begin()
    alone.on_epoch_end(0, {"apart": 1.0})
    alone.on_train_end()
    for crash in crashes:
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path, crash)
    run(tmp_path)
    run(tmp_path / "whole")
    found, whole = (scalars(path / "logs/train") for path in (tmp_path, tmp_path / "whole"))
    assert found.pop("epoch_apart") == [(0, 1.0)]
    for tag in ("epoch_loss", "batch_loss"):
        steps = [step for step, _ in found[tag]]
        assert sorted(steps) == [step for step, _ in whole[tag]]
        assert sorted(found[tag]) == whole[tag]


def test_nothing_is_held_open_after_the_training(tmp_path):
    board = TensorBoard(tmp_path / "logs")
    train([ModelCheckpoint(tmp_path / "store"), board])
    assert board._writers == {}
    board.on_checkpoint(ckptstore.open(tmp_path / "store").resolve("main"), "main")
    assert board._writers == {}


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install"):
        TensorBoard()

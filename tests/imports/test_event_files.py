"""Scalars of event files that SummaryWriter and Keras wrote, and of files made to do harm."""

from __future__ import annotations

import shutil
import struct
import sys

import google_crc32c
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from torch.utils.tensorboard import SummaryWriter

import ckptstore
from ckptstore.errors import InvalidInputError, StorageError
from ckptstore.imports import event_files
from ckptstore.imports.metrics_file import read_rows


def write(folder, scalars):
    with SummaryWriter(str(folder)) as writer:
        for tag, step, value in scalars:
            writer.add_scalar(tag, value, step)
        writer.add_text("note", "words", 1)
        writer.add_histogram("weights", np.ones(5), 1)
        writer.add_image("picture", np.zeros((3, 2, 2)), 1)


def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data, *, length=None):
    head = struct.pack("<Q", len(data) if length is None else length)
    return head + masked(head) + data + masked(data)


def event(step, tag, **value):
    made = Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, **value)]))
    return frame(made.SerializeToString())


def tensor(**fields):
    return TensorProto(**fields)


def test_scalars_by_step_and_by_epoch_and_what_is_no_scalar_is_left_out(tmp_path):
    write(tmp_path / "train", [("loss", 1, 0.5), ("loss", 2, 0.25), ("epoch_loss", 0, 0.75)])
    write(tmp_path / "validation", [("epoch_loss", 0, 1.5), ("loss", 2, 0.125)])
    write(tmp_path / "other" / "run", [("loss", 2, 9.0)])
    rows = read_rows(tmp_path)
    assert rows.of("any.pt", 1, None) == {"loss": 0.5}
    assert rows.of("any.pt", 2, None) == {"loss": 0.25, "val_loss": 0.125, "other/run/loss": 9.0}
    assert rows.of("any.pt", None, 0) == {"loss": 0.75, "val_loss": 1.5}
    assert rows.notes == []


def test_one_file_and_what_ckptstore_wrote_of_checkpoints(tmp_path):
    write(tmp_path, [("checkpoint/val_loss", 3, 0.5), ("epoch", 3, 1)])
    (file,) = tmp_path.iterdir()
    rows = read_rows(file)
    assert rows.of("any.pt", 3, None) == rows.of("any.pt", None, 1) == {"val_loss": 0.5}


def test_the_last_value_of_a_step_counts(tmp_path):
    """As after a resume, which writes to a new file."""
    write(tmp_path, [("loss", 1, 0.5), ("loss", 2, 0.25)])
    for path in tmp_path.iterdir():
        path.rename(tmp_path / "events.out.tfevents.1")
    write(tmp_path, [("loss", 2, 0.125)])
    rows = read_rows(tmp_path)
    assert [rows.of("any.pt", step, None)["loss"] for step in (1, 2)] == [0.5, 0.125]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ({"dtype": 1, "tensor_content": struct.pack("<f", 0.5)}, 0.5),
        ({"dtype": 1, "float_val": [0.5]}, 0.5),
        ({"dtype": 2, "double_val": [0.5]}, 0.5),
        ({"dtype": 9, "int64_val": [3]}, 3),
        ({"dtype": 3, "tensor_content": struct.pack("<i", 3)}, 3),
        ({"dtype": 7, "string_val": [b"text"]}, None),
        ({"dtype": 1, "float_val": [0.5, 1.5]}, None),
    ],
    ids=str,
)
def test_scalars_of_tensorflow_2_are_tensors(tmp_path, value, number):
    data = event(1, "loss", tensor=tensor(**value)) + event(1, "other", simple_value=1.0)
    (tmp_path / "events.tfevents.1").write_bytes(data)
    assert read_rows(tmp_path).of("any.pt", 1, None).get("loss") == number


def test_a_file_that_a_killed_run_left_is_read_up_to_its_end(tmp_path):
    write(tmp_path, [("loss", step, 1 / step) for step in (1, 2, 3)])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    ends = 0
    for size in range(len(whole) - 120, len(whole)):
        file.write_bytes(whole[:size])
        rows = read_rows(file)
        assert rows.of("any.pt", 1, None) == {"loss": 1.0}
        assert rows.notes == []
        ends += 1
    assert ends == 120


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (b"\xff" * 12, "checksums are wrong from byte"),
        (frame(b"\xff" * 40), "cannot be parsed"),
        (frame(b"x" * 40)[:-1] + b"\0", "checksums are wrong before byte"),
        (b"\0" * 4096, "checksums are wrong from byte"),
    ],
    ids=["head", "event", "data", "zeros"],
)
def test_damage_ends_a_file_and_is_named(tmp_path, tail, said):
    data = event(1, "loss", simple_value=0.5)
    (tmp_path / "tfevents").write_bytes(data + tail + data)
    rows = read_rows(tmp_path)
    assert rows.of("any.pt", 1, None) == {"loss": 0.5}
    assert said in rows.notes[0]


@pytest.mark.hostile
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        frame(b"", length=2**64 - 1),
        frame(b"", length=2**40),
        event(1, "", simple_value=1.0),
        event(1, "loss", tensor=tensor(dtype=99, float_val=[1.0])),
        event(
            1,
            "loss",
            tensor=TensorProto(
                dtype=1,
                float_val=[1.0],
                tensor_shape={"dim": [{"size": 2**40}, {"size": 2**20}]},
            ),
        ),
        event(1, "loss", tensor=tensor(dtype=1, tensor_content=b"x" * 9)),
    ],
    ids=["empty", "byte", "longest", "long", "no tag", "dtype", "huge shape", "content"],
)
def test_a_file_that_claims_anything_is_refused_without_memory_for_it(tmp_path, data):
    (tmp_path / "tfevents").write_bytes(data)
    with pytest.raises(InvalidInputError, match="holds no scalars"):
        read_rows(tmp_path / "tfevents")


@pytest.mark.hostile
def test_an_event_that_is_too_large_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "RECORD_BYTES_MAX", 100)
    data = event(1, "x" * 200, simple_value=1.0) + event(2, "loss", simple_value=0.5)
    (tmp_path / "tfevents").write_bytes(data)
    assert [*read_rows(tmp_path).by_step] == [2]


@pytest.mark.hostile
def test_too_many_scalars_or_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "SCALARS_MAX", 2)
    monkeypatch.setattr(event_files, "FILES_MAX", 2)
    write(tmp_path, [("loss", step, 1.0) for step in range(3)])
    with pytest.raises(InvalidInputError, match="more than 2 scalars"):
        read_rows(tmp_path)
    for name in "ab":
        (tmp_path / f"tfevents-{name}").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="3 event files"):
        read_rows(tmp_path)


def test_a_folder_without_event_files_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no event files"):
        read_rows(tmp_path)


@pytest.mark.hostile
def test_a_planted_folder_or_link_is_not_followed(tmp_path):
    (tmp_path / "logs" / "tfevents-folder").mkdir(parents=True)
    (tmp_path / "logs" / "tfevents-loop").symlink_to("tfevents-loop")
    with pytest.raises((InvalidInputError, StorageError)):
        read_rows(tmp_path / "logs")


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, [("loss", 1, 1.0)])
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'ckptstore\[tensorboard\]'"):
        read_rows(tmp_path)


def test_checkpoints_get_the_metrics_of_their_steps_and_damage_is_told(tmp_path):
    for step in (10, 20):
        np.savez(tmp_path / f"run-{step}.npz", w=np.full(2, step))
    write(tmp_path / "logs", [("loss", step, 1 / step) for step in (5, 10, 15, 20)])
    (file,) = (tmp_path / "logs").iterdir()
    shutil.copy(file, tmp_path / "logs" / "z.tfevents")
    with (tmp_path / "logs" / "z.tfevents").open("ab") as damaged:
        damaged.write(b"\xff" * 20)
    repo = ckptstore.init("memory://")
    plan = ckptstore.plan_import(repo, tmp_path / "run-{step}.npz", metrics=tmp_path / "logs")
    found = [dict(one.metrics) for one in plan.execute()]
    assert found == [{"loss": pytest.approx(0.1)}, {"loss": pytest.approx(0.05)}]
    assert any("z.tfevents is damaged" in note for note in plan.notes)
    assert any("step 5" in note for note in plan.notes)

"""Checkpoints that TensorFlow itself wrote."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

import ckptstore
from ckptstore.formats import read_file

pytestmark = [pytest.mark.framework]
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8"),
    *("uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
)


class Model(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(np.arange(60_000, dtype="float32").reshape(300, 200))
        self.empty = tf.Variable(np.zeros((0, 3), "float32"))
        self.texts = tf.Variable(["a", "bc"])
        self.by_dtype = {name: tf.Variable(tf.cast([0, 1], name)) for name in DTYPES}


def test_every_tensor_of_a_checkpoint_is_committed_bit_for_bit(tmp_path: Path) -> None:
    model = Model()
    saved = tf.train.Checkpoint(model=model, step=tf.Variable(3))
    manager = tf.train.CheckpointManager(saved, str(tmp_path), max_to_keep=2)
    manager.save()
    model.w.assign_add(tf.ones_like(model.w))
    prefix = manager.save()
    repo = ckptstore.init("memory://")
    made = repo.commit(read_file(tmp_path).state)
    reader = tf.train.load_checkpoint(prefix)
    names = {name for name, _ in tf.train.list_variables(prefix)}
    for array in made.arrays:
        expected = reader.get_tensor(array.path)
        assert array.dtype == expected.dtype.name
        assert np.asarray(made.array(array.path)).tobytes() == expected.tobytes()
    texts = {f"model/texts{SUFFIX}", "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert {array.path for array in made.arrays} == names - texts
    state = repo.checkout("main")
    assert state["model"]["texts"][".ATTRIBUTES"]["VARIABLE_VALUE"] == [b"a", b"bc"]
    graph = reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    assert state["_CHECKPOINTABLE_OBJECT_GRAPH"] == graph


def test_a_run_is_imported_and_what_did_not_change_is_stored_once(tmp_path: Path) -> None:
    model = Model()
    saved = tf.train.Checkpoint(model=model)
    for step in (1, 2):
        saved.write(str(tmp_path / f"ckpt-{step}"))
        model.by_dtype["int32"].assign([step, step])
    repo = ckptstore.init("memory://")
    plan = ckptstore.plan_import(repo, tmp_path, pattern="ckpt-{step}.index")
    first, second = plan.execute()
    assert (first.step, second.step) == (1, 2)
    assert second.new_bytes < 50_000 < first.new_bytes
    kept = repo.checkout("main", rename={rf"(.*){SUFFIX}": r"\1"}, include=f"**{SUFFIX}")
    assert kept["model"]["by_dtype"]["int32"].tolist() == [1, 1]

"""Weights & Biases offline: the records that it has written to the file of the run."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from wandb.proto import wandb_internal_pb2

import ckptstore
from ckptstore.errors import InvalidInputError
from ckptstore.integrations.wandb import WandbHook
from ckptstore.training import CheckpointManager
from tests.helpers.waiting import until

pytestmark = [pytest.mark.framework]
STATE = {"w": np.arange(4.0)}


@pytest.fixture
def repo(tmp_path):
    return ckptstore.init(tmp_path / "store")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # another framework may have had it read its environment already
    with wandb.init(project="p", dir=tmp_path) as run:
        yield run


BLOCK_BYTES, HEADER_BYTES = 32 << 10, 7  # of the log format of LevelDB; also those of the file
WHOLE, LAST = 1, 4  # kinds of fragments


def payloads(data):
    """The payloads in a file of a run; wandb has no reader in Python."""
    place, begun = HEADER_BYTES, b""
    while place < len(data):
        if BLOCK_BYTES - place % BLOCK_BYTES < HEADER_BYTES:
            place += BLOCK_BYTES - place % BLOCK_BYTES
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        begun += data[place + HEADER_BYTES :][:length]
        place += HEADER_BYTES + length
        if kind in (WHOLE, LAST):
            yield begun
            begun = b""


def records(run):
    """The records of a run, by kind, once it is finished."""
    run.finish()
    (path,) = Path(run.dir).parent.glob("*.wandb")
    until(lambda: "exit" in in_file(path))  # another process writes the file
    return in_file(path)


def in_file(path):
    found = {}
    for payload in payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def values(items):
    """The values of a history or summary record by name."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def summary_of(found):
    merged = {}
    for record in found["summary"]:
        merged |= values(record.update)
    return merged


def test_the_summary_names_the_newest_and_artifacts_refer_to_each(run, repo):
    model = torch.nn.Linear(1, 1)
    with CheckpointManager(
        repo, branch="runs/a", on_commit=WandbHook(), mirror=f"{repo.url}-m", model=model
    ) as saves:
        for step in (10, 20):
            saves.save(step, metrics={"loss": 1 / step})
    found = records(run)
    newest, first = repo.log("runs/a")
    told = {key: value for key, value in summary_of(found).items() if key.startswith("checkpoint/")}
    assert told == {
        "checkpoint/id": newest.id,
        "checkpoint/step": 20,
        "checkpoint/address": f"{repo.url}#{newest.id}",
        "checkpoint/mirror": f"{repo.url}-m",
    }
    artifacts = found["artifact"]
    assert [artifact.name for artifact in artifacts] == ["checkpoint-runs-a"] * 2
    assert [sorted(artifact.aliases) for artifact in artifacts] == [
        ["latest", "step-10"],
        ["latest", "step-20"],
    ]
    for artifact, made in zip(artifacts, (first, newest), strict=True):
        metadata = json.loads(artifact.metadata)
        assert metadata["checkpoint"] == made.id
        assert metadata["metrics"] == {"loss": 1 / made.step}
        assert ckptstore.open(metadata["repository"]).resolve(metadata["checkpoint"]) == made
        (entry,) = artifact.manifest.contents
        assert entry.ref == f"file://{repo.url}/checkpoints/{made.id}.json"
        assert Path(entry.ref.removeprefix("file://")).is_file()
    assert "history" not in found


def test_metrics_are_logged_over_the_step_of_the_checkpoint_if_asked_for(run, repo):
    repo.on_commit(WandbHook(run, artifacts=False, metrics=True))
    for step in (10, 20):
        repo.commit(STATE, step=step, metrics={"loss": 1 / step})
    found = records(run)
    rows = [values(record.item) for record in found["history"]]
    assert [(row["checkpoint/step"], row["checkpoint/loss"]) for row in rows] == [
        (10, 0.1),
        (20, 0.05),
    ]
    assert "artifact" not in found


def test_the_steps_of_a_loop_are_left_alone(run, repo):
    repo.on_commit(WandbHook())
    for step in (10, 20):
        run.log({"loss": 1 / step}, step=step)
        repo.commit(STATE, step=step)
        run.log({"more": step}, step=step)
    rows = [values(record.item) for record in records(run)["history"]]
    assert [(row["_step"], row["loss"], row["more"]) for row in rows] == [
        (10, 0.1, 10),
        (20, 0.05, 20),
    ]


def test_without_a_run_it_is_refused():
    with pytest.raises(InvalidInputError, match="needs a run"):
        WandbHook()

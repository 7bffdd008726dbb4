"""MLflow: its own client reads back what the hook logged, from its file store."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import InvalidInputError
from ckptstore.integrations.mlflow import MlflowHook
from ckptstore.training import CheckpointManager

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:The filesystem tracking backend:FutureWarning"),
]
STATE = {"w": np.arange(4.0)}


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    yield mlflow.MlflowClient()
    mlflow.end_run()


@pytest.fixture
def repo(tmp_path):
    return ckptstore.init(tmp_path / "store")


def history(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run, name)]


def test_saves_in_the_background_are_logged_to_the_run_that_was_active(client, repo):
    model = torch.nn.Linear(1, 1)
    with mlflow.start_run() as run:
        hook = MlflowHook()
        with CheckpointManager(repo, on_commit=hook, mirror=f"{repo.url}-m", model=model) as saves:
            for step in (10, 20):
                saves.save(step, metrics={"val/loss": 1 / step, "acc@5": float("nan")})
    id = run.info.run_id
    assert history(client, id, "val/loss") == [(10, 0.1), (20, 0.05)]
    assert [step for step, _ in history(client, id, "acc_5")] == [10, 20]
    newest = repo.resolve("main")
    tags = {
        name: value
        for name, value in client.get_run(id).data.tags.items()
        if name.startswith("ckptstore.")
    }
    assert tags == {
        "ckptstore.checkpoint": newest.id,
        "ckptstore.step": "20",
        "ckptstore.address": f"{repo.url}#{newest.id}",
        "ckptstore.repository": repo.url,
        "ckptstore.mirror": f"{repo.url}-m",
    }


def test_artifacts_refer_to_each_checkpoint(client, repo):
    with mlflow.start_run() as run:
        repo.on_commit(MlflowHook(artifacts=True))
        made = [repo.commit(STATE, step=step, metrics={"loss": 0.5}) for step in (1, 2)]
    listed = client.list_artifacts(run.info.run_id, "checkpoints")
    names = [f"checkpoints/{one.step:08}-{one.id.short}.json" for one in made]
    assert [item.path for item in listed] == names
    uri = run.info.artifact_uri
    document = json.loads(Path(uri.removeprefix("file:"), names[0]).read_text())
    assert document["checkpoint"] == made[0].id
    assert document["metrics"] == {"loss": 0.5}
    assert ckptstore.open(document["repository"]).resolve(document["checkpoint"]) == made[0]


def test_a_run_by_its_id_and_client_from_another_thread(client, repo):
    id = client.create_run("0").info.run_id if client.get_experiment("0") else ""
    repo.on_commit(MlflowHook(id, client=client))
    job = threading.Thread(target=lambda: repo.commit(STATE, step=3, metrics={"loss": 1}))
    job.start()
    job.join()
    assert history(client, id, "loss") == [(3, 1.0)]
    assert mlflow.active_run() is None


def test_without_a_run_it_is_refused(client):
    with pytest.raises(InvalidInputError, match="needs a run"):
        MlflowHook()


def test_a_store_that_fails_costs_no_commit(client, repo):
    with mlflow.start_run() as run:
        repo.on_commit(MlflowHook())
    client.delete_run(run.info.run_id)
    with pytest.warns(RuntimeWarning, match="MlflowHook failed"):
        repo.commit(STATE, metrics={"loss": 0.5})
    assert len(repo.log()) == 1

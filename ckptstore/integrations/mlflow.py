"""MLflow: the metrics of each checkpoint, and where it is, in a run.

A hook for `Repository.on_commit` and `CheckpointManager(on_commit=)`. It works with any tracking
store: a server, or SQLite and files on this machine. See docs/adr/0076.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError
from ckptstore.integrations import needed

with needed("mlflow"):
    import mlflow
    from mlflow.entities import Metric, RunTag

if TYPE_CHECKING:
    from ckptstore import CommitEvent

__all__ = ["MlflowHook"]

_ILLEGAL = re.compile(r"[^\w\-./ ]", re.ASCII)  # in the name of a metric
TAG = "ckptstore."


class MlflowHook:
    """Logs each checkpoint to an MLflow run.

    Its metrics are logged at its step. The tags "ckptstore.checkpoint", "ckptstore.step",
    "ckptstore.address", "ckptstore.repository" and "ckptstore.mirror" name the newest one. It logs
    to one run, whichever thread commits.

    Args:
        run_id: The run. The active one if None.
        artifacts: Whether to add a JSON file with the address, step and metrics of each checkpoint
            to the artifacts of the run, in the folder "checkpoints".
        client: A client of a tracking store other than that of `mlflow.set_tracking_uri`.

    Raises:
        InvalidInputError: There is neither a run_id nor an active run.

    Example:
        >>> import mlflow, os, tempfile, ckptstore
        >>> from ckptstore.integrations.mlflow import MlflowHook
        >>> os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # files; a database needs no such word
        >>> mlflow.set_tracking_uri(f"file:{tempfile.mkdtemp()}/mlruns")
        >>> repo = ckptstore.init("memory://mlflow-example")
        >>> with mlflow.start_run() as run:
        ...     remove = repo.on_commit(MlflowHook())
        ...     checkpoint = repo.commit({"lr": 0.1}, step=1, metrics={"loss": 0.5})
        >>> logged = mlflow.get_run(run.info.run_id).data
        >>> logged.metrics, logged.tags["ckptstore.checkpoint"] == checkpoint.id
        ({'loss': 0.5}, True)
    """

    def __init__(
        self,
        run_id: str | None = None,
        *,
        artifacts: bool = False,
        client: mlflow.MlflowClient | None = None,
    ) -> None:
        active = mlflow.active_run() if run_id is None else None
        if run_id is None and active is None:
            raise InvalidInputError(
                "MlflowHook needs a run. Make it inside mlflow.start_run(), or pass run_id."
            )
        self.run_id = active.info.run_id if active is not None else run_id
        self._artifacts = artifacts
        self._client = mlflow.MlflowClient() if client is None else client

    def __call__(self, event: CommitEvent) -> None:
        """Log one checkpoint."""
        now, step = int(time.time() * 1000), event.step or 0
        metrics = [
            Metric(_ILLEGAL.sub("_", name), float(value), now, step)
            for name, value in event.metrics.items()
        ]
        facts = event.document() | {"address": event.address}
        tags = [
            RunTag(TAG + name.removeprefix("checkpoint_"), str(value))
            for name, value in facts.items()
        ]
        self._client.log_batch(self.run_id, metrics=metrics, tags=tags)
        if self._artifacts:
            document = facts | {"branch": event.branch, "metrics": dict(event.metrics)}
            name = f"checkpoints/{step:08}-{event.checkpoint.id.short}.json"
            self._client.log_dict(self.run_id, document, name)

"""Weights & Biases: each checkpoint as a reference artifact, and the newest in the summary.

A hook for `Repository.on_commit` and `CheckpointManager(on_commit=)`. It works offline, too. No
array is uploaded: an artifact refers to the repository. See docs/adr/0076.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError
from ckptstore.integrations import needed

with needed("wandb"):
    import wandb

if TYPE_CHECKING:
    from ckptstore import CommitEvent

__all__ = ["WandbHook"]

_ILLEGAL = re.compile(r"[^A-Za-z0-9_.\-]")  # in the name of an artifact
NAME_LENGTH_MAX = 120
STEP = "checkpoint/step"


class WandbHook:
    """Logs each checkpoint to a run of Weights & Biases.

    The summary of the run has the newest: "checkpoint/id", "checkpoint/step", "checkpoint/address"
    and "checkpoint/mirror". With `artifacts`, each one is a version of the artifact of its branch,
    of the type "checkpoint", which refers to its manifest in the repository and has its address,
    step and metrics as metadata.

    Args:
        run: The run. The current one if None.
        artifacts: Whether to log artifacts.
        metrics: Whether to log the metrics of each checkpoint as "checkpoint/NAME", over
            "checkpoint/step". This counts as a step of `wandb.log`, so leave it out where the loop
            passes `step=` to it.

    Raises:
        InvalidInputError: There is no run.

    Example:
        >>> import tempfile, wandb, ckptstore
        >>> from ckptstore.integrations.wandb import WandbHook
        >>> repo = ckptstore.init("memory://wandb-example")
        >>> settings = wandb.Settings(silent=True)
        >>> with wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=settings) as run:
        ...     remove = repo.on_commit(WandbHook())
        ...     checkpoint = repo.commit({"lr": 0.1}, step=1, metrics={"loss": 0.5})
        ...     run.summary["checkpoint/id"] == checkpoint.id
        True
    """

    def __init__(self, run: Any = None, *, artifacts: bool = True, metrics: bool = False) -> None:
        current: Any = wandb.run if run is None else run
        if current is None:
            raise InvalidInputError("WandbHook needs a run. Call wandb.init() first, or pass run.")
        self.run, self._artifacts, self._metrics = current, artifacts, metrics
        if metrics:
            self.run.define_metric(STEP, hidden=True)
            self.run.define_metric("checkpoint/*", step_metric=STEP)

    def __call__(self, event: CommitEvent) -> None:
        """Log one checkpoint."""
        if self._metrics:
            named = {f"checkpoint/{name}": value for name, value in event.metrics.items()}
            self.run.log({**named, STEP: event.step or 0})
        newest = {"id": event.id, "step": event.step, "address": event.address}
        if event.mirror is not None:
            newest["mirror"] = event.mirror
        self.run.summary.update({f"checkpoint/{name}": value for name, value in newest.items()})
        if self._artifacts:
            self.run.log_artifact(_artifact(event), aliases=_aliases(event))


def _artifact(event: CommitEvent) -> Any:
    """Return the artifact of a checkpoint, which refers to it without a copy."""
    name = f"checkpoint-{event.branch or 'main'}"
    artifact = wandb.Artifact(
        _ILLEGAL.sub("-", name)[:NAME_LENGTH_MAX],
        type="checkpoint",
        description=event.checkpoint.message or None,
        metadata={
            **event.document(),
            "address": event.address,
            "branch": event.branch,
            "metrics": dict(event.metrics),
        },
    )
    artifact.add_reference(_uri(event), name="manifest.json", checksum=False)
    return artifact


def _uri(event: CommitEvent) -> str:
    """Return the URI of the manifest of a checkpoint, a file named by its own digest."""
    path = event.repository.startswith("/")
    place = f"file://{urllib.parse.quote(event.repository)}" if path else event.repository
    return f"{place}/checkpoints/{event.id}.json"


def _aliases(event: CommitEvent) -> list[str]:
    return ["latest"] if event.step is None else ["latest", f"step-{event.step}"]

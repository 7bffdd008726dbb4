"""TensorBoard: checkpoints as texts and scalars, and hyperparameters with their metrics.

A hook for `Repository.on_commit` and `CheckpointManager(on_commit=)`. Trainings with callbacks have
`ckptstore.training.callbacks.TensorBoard`, which writes the same and more. See docs/adr/0076.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckptstore.integrations import needed
from ckptstore.training.checkpoint_writer import CheckpointWriter

with needed("tensorboard"):
    from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore import CommitEvent

__all__ = ["TensorBoardHook"]


class TensorBoardHook:
    """Writes each checkpoint to TensorBoard: its id and address as text, its metrics as scalars.

    The text is called "checkpoint", and the scalars "checkpoint/" and the name of the metric, at
    the step of the checkpoint.

    Args:
        log_dir: The folder for the event files, or a `SummaryWriter` of the program.
        hparams: The hyperparameters of the run by name. TensorBoard's HParams page shows them with
            the metrics of the newest checkpoint.

    Example:
        >>> import tempfile, pathlib, ckptstore
        >>> from ckptstore.integrations.tensorboard import TensorBoardHook
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> repo = ckptstore.init("memory://")
        >>> hook = TensorBoardHook(folder, hparams={"lr": 0.1})
        >>> remove = repo.on_commit(hook)
        >>> _ = repo.commit({"lr": 0.1}, step=1, metrics={"loss": 0.5})
        >>> hook.close()
        >>> len(list(folder.glob("events.out.tfevents.*")))
        1
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | SummaryWriter,
        *,
        hparams: Mapping[str, bool | str | float] | None = None,
    ) -> None:
        is_path = isinstance(log_dir, str | os.PathLike)
        self._writer = SummaryWriter(os.fspath(log_dir)) if is_path else log_dir  # type: ignore[arg-type]
        self._checkpoints = CheckpointWriter(self._writer, hparams or {})

    def __call__(self, event: CommitEvent) -> None:
        """Write one checkpoint."""
        self._checkpoints.write(event)
        self._writer.flush()  # type: ignore[union-attr]

    def close(self) -> None:
        """Close the event files."""
        self._writer.close()  # type: ignore[union-attr]

"""CheckpointWriter: what TensorBoard shows of checkpoints, through a SummaryWriter of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.commit_hooks import CommitEvent

PREFIX = "checkpoint/"


class CheckpointWriter:
    """Writes checkpoints as texts and scalars, and the hyperparameters of the run with them.

    Args:
        writer: A SummaryWriter.
        hparams: Hyperparameters by name, for TensorBoard's HParams page; none leaves it out.
    """

    def __init__(self, writer: Any, hparams: Mapping[str, bool | str | float]) -> None:
        self._writer, self._hparams = writer, dict(hparams)
        self._shown: set[str] = set()  # the metrics that the HParams page shows

    def write(self, event: CommitEvent) -> None:
        """Write one checkpoint at its step; at 0 if it has none."""
        step = event.step or 0
        facts = event.document() | {"branch": event.branch, "message": event.checkpoint.message}
        lines = [
            f"- {name}: {value}"
            for name, value in (facts | dict(event.metrics)).items()
            if value not in (None, "")
        ]
        self._writer.add_text("checkpoint", "\n".join([f"`{event.address}`", "", *lines]), step)
        for name, value in {"step": step, **event.metrics}.items():
            self._writer.add_scalar(PREFIX + name, value, step)
        if self._hparams and not self._shown.issuperset(event.metrics):
            self._write_hparams(event)

    def _write_hparams(self, event: CommitEvent) -> None:
        """Write the hyperparameters, and the names of the metrics to show beside them."""
        from torch.utils.tensorboard.summary import hparams

        self._shown.update(event.metrics)
        metrics = {f"{PREFIX}{name}": 0.0 for name in sorted(self._shown)}
        for summary in hparams(self._hparams, metrics):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

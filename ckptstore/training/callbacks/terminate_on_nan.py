"""TerminateOnNaN: ends a run whose loss is not finite, and names the last good checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ckptstore.errors import CkptStoreError
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback, report
from ckptstore.training.callbacks.monitor import number
from ckptstore.training.callbacks.saver import savers_of

if TYPE_CHECKING:
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.manager import CheckpointManager
    from ckptstore.training.training import Training


class TerminateOnNaN(Callback):
    """Ends the training when the loss is NaN or infinite.

    Unlike Keras' class it reports, on stderr, the newest checkpoint of the training whose weights
    are all finite. From then on no other callback of this package saves, and no backup is deleted.

    Args:
        raise_error: Raise RuntimeError instead of ending the training normally.

    Example:
        >>> from ckptstore.training import CallbackList, TerminateOnNaN
        >>> callbacks = CallbackList([TerminateOnNaN(raise_error=True)])
        >>> callbacks.on_train_batch_end(0, {"loss": float("nan")})
        Traceback (most recent call last):
        RuntimeError: Batch 0: the loss is nan, so training ends. No checkpoint was saved.
    """

    @explained
    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Check the loss.

        Raises:
            RuntimeError: The loss is not finite, and `raise_error` was given.
        """
        loss = number((logs or {}).get("loss"))
        training = self.training
        if loss is None or math.isfinite(loss) or training.is_terminated:
            return
        training.stop_training = training.is_terminated = True
        text = f"Batch {batch}: the loss is {loss}, so training ends. {_last_good(training)}"
        if self.raise_error:
            raise RuntimeError(text)
        report(text)


def _managers(training: Training) -> list[CheckpointManager]:
    """The managers that save this run: those of its callbacks, in order, then its own."""
    managers = [*(saver.manager_or_none for saver in savers_of(training)), training.manager]
    return [manager for manager in managers if manager is not None]


def _last_good(training: Training) -> str:
    """One sentence about the newest checkpoint whose weights are all finite."""
    managers = _managers(training)
    if not managers:
        return "No checkpoint was saved."
    for manager in managers:
        try:
            manager.wait()
        except CkptStoreError as error:
            report(f"The last save to {manager.branch} failed: {error}")
    pairs = [(checkpoint, manager) for manager in managers for checkpoint in manager.checkpoints]
    for checkpoint, manager in sorted(pairs, key=lambda pair: pair[0].created, reverse=True):
        if _is_finite(checkpoint):
            return (
                f"The last good checkpoint is {checkpoint.id.short} (step {checkpoint.step}) on "
                f"{manager.branch}."
            )
    return "No checkpoint with finite weights was saved."


def _is_finite(checkpoint: Checkpoint) -> bool:
    """Whether all weights are finite: the update before a bad loss may have spoiled them."""
    if not math.isfinite(checkpoint.metrics.get("loss", 0)):
        return False
    try:
        paths = [array.path for array in checkpoint.arrays if array.path.startswith("model/")]
        return all(_has_finite(checkpoint.array(path)[...]) for path in paths)
    except CkptStoreError:
        return False


def _has_finite(weight: Any) -> bool:
    """Whether a tensor or a numpy array has finite numbers only."""
    if hasattr(weight, "isfinite"):
        number = weight.float() if weight.itemsize == 1 else weight  # torch tells not all float8
        return bool(number.isfinite().all())
    import numpy as np

    return bool(np.isfinite(weight).all())
